// A 64-bit fingerprint of some bytes. Each step maps the hash, and the word, one to one: where only
// one word changes, the fingerprint changes for certain.

template <class Word>
inline Word mix(Word hash, Word word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15u;  // odd: 2^64 / the golden ratio
  return hash ^ (hash >> 32);
}

// Vectors, if the set multiplies such words faster than one at a time: AVX-512 does.
template <int64_t kBytes>
struct Words {
  using Type = uint64_t;
};
template <>
struct Words<64> {
  typedef uint64_t Type __attribute__((vector_size(64)));
};

inline uint64_t fingerprint(const char* from, int64_t bytes, uint64_t seed) {
  using Word = typename Words<Isa::kBytes>::Type;
  constexpr int kChains = 8;  // independent ones: one alone would wait for its multiplications
  constexpr int kWords = int(sizeof(Word) / sizeof(uint64_t)) * kChains;
  uint64_t words[kWords];
  for (int i = 0; i < kWords; ++i) words[i] = mix(seed, uint64_t(i));
  Word chains[kChains];
  __builtin_memcpy(chains, words, sizeof(words));
  const char* const end = from + bytes;
  for (; end - from >= int64_t(sizeof(words)); from += sizeof(words)) {
    for (int i = 0; i < kChains; ++i) {
      Word next;
      __builtin_memcpy(&next, from + i * sizeof(Word), sizeof(next));
      chains[i] = mix(chains[i], next);
    }
  }
  uint64_t rest[kWords] = {};
  __builtin_memcpy(rest, from, end - from);
  __builtin_memcpy(words, chains, sizeof(words));
  uint64_t hash = seed;
  for (int i = 0; i < kWords; ++i) hash = mix(hash, mix(words[i], rest[i]));
  return hash;
}
