// Included before everything else in the CPU library and in _bindings: what a new glibc would bind
// them to, so that a library that is built on any Linux loads on one with glibc 2.28.

#pragma once

#include <features.h>

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))

// glibc 2.34 moved these from libdl and libpthread, and named them anew; the old names are still
// there.
#if defined(__x86_64__)
#define VGG_FAST_OLDEST_GLIBC "GLIBC_2.2.5"
#else
#define VGG_FAST_OLDEST_GLIBC "GLIBC_2.17"
#endif
__asm__(".symver dlsym, dlsym@" VGG_FAST_OLDEST_GLIBC);
__asm__(".symver pthread_mutex_trylock, pthread_mutex_trylock@" VGG_FAST_OLDEST_GLIBC);

// libstdc++ counts references without atomics as long as glibc 2.32 says that there is one thread.
// Here there never is.
#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
inline constexpr char vgg_fast_single_threaded = 0;
#define __libc_single_threaded vgg_fast_single_threaded
#endif

#endif
