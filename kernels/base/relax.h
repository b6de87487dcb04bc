/* What a loop does between two looks at memory that another core will write. */
#ifndef TD_KERNELS_BASE_RELAX_H
#define TD_KERNELS_BASE_RELAX_H

/* Rests this core for some cycles (x86: pause, Arm: yield), so that its other thread gets on and the loop does not fill the pipeline
 * with loads. The thread keeps its core; nothing where there is no such instruction. */
static inline void td_relax_core(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
