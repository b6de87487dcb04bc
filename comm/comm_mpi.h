/* What the daemon may know of MPI besides the group seam of comm.h: how this process was started, and which library
 * it would use. Nothing here initialises MPI. */
#ifndef TD_COMM_COMM_MPI_H
#define TD_COMM_COMM_MPI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct td_comm;

/* Of this process in its MPI job, as the launcher says in the environment. */
struct td_comm_mpi_place {
    uint32_t rank;
    uint32_t size;
    uint32_t local_rank; /* among the ranks of this host */
    uint32_t local_size; /* 0: the launcher does not say */
};

/* Whether mpirun, mpiexec or srun started this process as a rank. */
bool td_comm_mpi_launched(void);
/* As td_comm_mpi_launched, and fills `place` when true. A launcher that leaves the size out (srun's PMIx) gives
 * SLURM_NTASKS, else 0 until MPI is up. */
bool td_comm_mpi_place(struct td_comm_mpi_place *place);
/* The library's own version line, "Open MPI v4.1.4, package: ...". Static storage. Any thread. */
const char *td_comm_mpi_version(void);
/* For the next td_comm_mpi_open, on all ranks alike. `messages_only`: ranks of one host share no memory but send messages
 * over MPI as well. `ranks_per_host`: so many neighbours count as one host, for tests; 0: as it is. */
void td_comm_mpi_configure(bool messages_only, uint32_t ranks_per_host);
/* Messages longer than this are sent in pieces (default 1 GiB). For tests; on every rank alike, between operations. */
void td_comm_mpi_set_piece(struct td_comm *comm, size_t piece_bytes);

#endif
