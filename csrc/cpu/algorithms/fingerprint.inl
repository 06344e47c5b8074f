// A 64-bit fingerprint of some bytes, which shows that a weight has changed.
//
// Blocks of 1 KiB are hashed by NH (Black, Halevi, Krawczyk, Krovetz and Rogaway, "UMAC: fast and
// secure message authentication", CRYPTO '99), twice, with different keys:
//
//   NH(m) = Σ_i (m[2i] + k[2i] mod 2³²) · (m[2i + 1] + k[2i + 1] mod 2³²)   mod 2⁶⁴
//
// Two different blocks have the same NH for one key in 2³², whatever their difference: a changed
// word moves the sum by its change times its partner plus key, a random number. So flipped signs
// don't cancel, and words that change places meet other keys. The blocks' sums then go through
// bijections, one after another. The keys are fixed, so equal bytes give equal fingerprints in
// every process and on every instruction set; that protects against accidents, not against
// attackers.

constexpr int64_t kHashedBytes = 1024;
constexpr int64_t kHashedWords = kHashedBytes / 8;  // each a pair m[2i], m[2i + 1]

struct HashKeys {
  alignas(64) uint64_t words[2][kHashedWords];
};

// A bijection after which every bit depends on every other (the finalizer of MurmurHash3, with the
// constants of Steele, Lea and Flood's SplitMix64).
constexpr uint64_t scramble(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

constexpr HashKeys make_hash_keys() {
  HashKeys keys{};
  uint64_t state = 0;
  for (auto& row : keys.words) {
    for (uint64_t& word : row) word = scramble(state += 0x9e3779b97f4a7c15u);  // 2⁶⁴ / golden ratio
  }
  return keys;
}

constexpr HashKeys kHashKeys = make_hash_keys();

typedef uint64_t HashVector __attribute__((vector_size(Isa::kBytes)));
typedef uint32_t HashHalves __attribute__((vector_size(Isa::kBytes)));

// Turns hash[2], the hash of everything so far, into the hash of that followed by this block.
inline void hash_block(const char* from, uint64_t* hash) {
  constexpr int64_t kLanes = Isa::kBytes / int64_t(sizeof(uint64_t));
  HashVector sums[2][2] = {};  // with one each, every addition would wait for the last
  for (int64_t i = 0; i < kHashedWords; i += 2 * kLanes) {
#pragma GCC unroll 2
    for (int64_t part = 0; part < 2; ++part) {
      HashHalves block, key;
      __builtin_memcpy(&block, from + (i + part * kLanes) * int64_t(sizeof(uint64_t)),
                       sizeof(block));
#pragma GCC unroll 2
      for (int64_t k = 0; k < 2; ++k) {
        __builtin_memcpy(&key, kHashKeys.words[k] + i + part * kLanes, sizeof(key));
        sums[k][part] += HashVector(Isa::multiply_halves(HashVector(block + key)));
      }
    }
  }
  for (int64_t k = 0; k < 2; ++k) {
    uint64_t sum = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) sum += sums[k][0][lane] + sums[k][1][lane];
    hash[k] = scramble(hash[k] ^ sum);
  }
}

inline uint64_t fingerprint(const char* from, int64_t bytes, uint64_t seed) {
  uint64_t hash[2] = {scramble(seed), scramble(~seed)};
  const char* const end = from + bytes;
  for (; end - from >= kHashedBytes; from += kHashedBytes) hash_block(from, hash);
  if (from < end) {
    char rest[kHashedBytes] = {};
    __builtin_memcpy(rest, from, end - from);
    hash_block(rest, hash);
  }
  return scramble(hash[0] + scramble(hash[1]));
}
