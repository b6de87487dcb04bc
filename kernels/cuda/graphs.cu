/* Captured graphs: operations that a caller names by a key are recorded when they come a second time, and from then on begun by one
 * call. A graph holds addresses, so all of them go when memory of the device does. */
#include "kernels/cuda/device.cuh"

namespace
{

/* The one with the key, else the one that was used longest ago, emptied. */
struct td_cuda_graph *graph_for(struct td_cuda *cuda, uint64_t key)
{
    struct td_cuda_graph *oldest = &cuda->graph[0];

    for (uint32_t i = 0; i < TD_CUDA_GRAPHS; i++) {
        struct td_cuda_graph *g = &cuda->graph[i];

        if (g->used && g->key == key)
            return g;
        oldest = g->used < oldest->used ? g : oldest;
    }
    if (oldest->exec)
        td_cuda_note(cuda, cudaGraphExecDestroy(oldest->exec));
    *oldest = {key, NULL, 0};
    return oldest;
}

} // namespace

bool td_cuda_replay(struct td_kern *kern, uint64_t key)
{
    struct td_cuda *cuda = td_cuda_of(kern);

    if (!cuda->p.graphs)
        return false;
    for (uint32_t i = 0; i < TD_CUDA_GRAPHS; i++) {
        struct td_cuda_graph *g = &cuda->graph[i];

        if (!g->exec || g->key != key)
            continue;
        g->used = ++cuda->n_graph_uses;
        td_cuda_note(cuda, cudaGraphLaunch(g->exec, cuda->stream));
        return true;
    }
    return false;
}

void td_cuda_record(struct td_kern *kern, uint64_t key)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    struct td_cuda_graph *g;
    bool is_known;

    if (!cuda->p.graphs)
        return;
    g = graph_for(cuda, key);
    is_known = g->used != 0; /* so scratch is as large as it has to be */
    g->used = ++cuda->n_graph_uses;
    if (!is_known)
        return;
    td_cuda_note(cuda, cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal));
    cuda->recording = g;
}

void td_cuda_record_end(struct td_kern *kern, bool keep)
{
    struct td_cuda *cuda = td_cuda_of(kern);
    struct td_cuda_graph *g = cuda->recording;
    cudaGraph_t graph = NULL;
    cudaError_t e;

    if (!g)
        return;
    cuda->recording = NULL;
    e = cudaStreamEndCapture(cuda->stream, &graph);
    e = e == cudaSuccess ? cudaGraphInstantiate(&g->exec, graph, 0) : e;
    e = e == cudaSuccess ? cudaGraphLaunch(g->exec, cuda->stream) : e;
    if (graph)
        td_cuda_note(cuda, cudaGraphDestroy(graph));
    td_cuda_note(cuda, e);
    if (!keep && g->exec) {
        td_cuda_note(cuda, cudaGraphExecDestroy(g->exec));
        g->exec = NULL;
    }
}

void td_cuda_graphs_drop(struct td_cuda *cuda)
{
    for (uint32_t i = 0; i < TD_CUDA_GRAPHS; i++)
        if (cuda->graph[i].exec)
            td_cuda_note(cuda, cudaGraphExecDestroy(cuda->graph[i].exec));
    memset(cuda->graph, 0, sizeof cuda->graph);
}
