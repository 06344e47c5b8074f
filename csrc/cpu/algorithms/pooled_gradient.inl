// The weight's gradient of few inputs behind a pooling, without the gradient's zeros. Of a window's
// four pixels one has passed its gradient on to a channel, the one that the channel's argmax names:
//
//   sums[m][k] += Σ_window patch[window + offset[m] + place(argmax[window][k])] ·
//   gradient[window][k]
//
// For each window and tap the four pixels that it may be lie together in a table, from which all
// lanes of a vector pick at once. That is a quarter of the multiply-adds, and nothing is spread out
// in memory.

// Windows of a strip, whose gradients and argmax stay in the nearest cache.
constexpr int64_t kStripWindows = 32;

template <class Real, class Set = Isa>
constexpr bool kCanPick = requires(const Real* four, typename Shape<Real>::Integers lanes) {
  Set::pick_of_four(four, lanes);
};

template <class Real>
bool picks_winners(const WeightGradient& task) {
  const int64_t channels = task.input.channels;
  return kCanPick<Real> && undoes_pooling(task.gradient.prologue) &&
         !reads_mask(task.gradient.prologue) && (channels == 1 || channels == 3) &&
         task.need_weight && !task.exclude_padding_taps;
}

// What isn't finite is multiplied with zeros too.
template <class Real>
bool is_finite(const Real* values, int64_t count) {
  Real check = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) check += values[i] * 0;
  return check == 0;
}

// Tables of the first, second and third row of taps, so many Reals apart: of a pixel, channel by
// channel, {pixel, its right neighbour, the two below}. A run of n windows takes 2n + 1 pixels.
constexpr int64_t table_pitch(int64_t channels) { return 3 * kStripWindows * channels * 4; }

// In Reals: all tables.
constexpr int64_t winners_size(int64_t channels) { return 3 * table_pitch(channels); }

// pixels: how many; from: the first of them, in the first row of taps.
template <class Real>
void fill_tables(const Patch& patch, const Real* from, int64_t pixels, Real* tables) {
  const int64_t pitch = patch.offset(0, 1, 0), channels = patch.channels;
  for (int64_t r = 0; r < 3; ++r, from += pitch, tables += table_pitch(channels)) {
    for (int64_t i = 0; i < pixels * channels; ++i) {
      Real* const to = tables + 4 * i;
      to[0] = from[i];
      to[1] = from[i + channels];
      to[2] = from[i + pitch];
      to[3] = from[i + pitch + channels];
    }
  }
}

// The windows of a strip: where their tables begin, their gradients behind the ReLU and the pixels
// that won, `stride` of either a window.
template <class Real>
struct WonWindows {
  const int64_t* tables;
  int64_t count;
  const Real* gradient;
  const Real* winner;  // Integers
  int64_t stride;
};

// Nine rows of sums from the tables at `left`, as NineRows has them.
template <class Real, int64_t kWidth, int64_t kAcross, class Set = Isa>
[[gnu::noinline]] void multiply_winners(const Real* left, int64_t pitch, WonWindows<Real> windows,
                                        Sums<Real> sums, Ahead ahead) {
  using S = Shape<Real>;
  using Integers = typename S::Integers;
  typename S::Vector sum[9][kWidth] = {};
  const Real *gradient = windows.gradient, *winner = windows.winner;
  for (int64_t t = 0; t < windows.count; ++t) {
    ahead(t);
    const Real* const table = left + windows.tables[t];
    typename S::Vector factor[kWidth];
    Integers lanes[kWidth];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWidth; ++v) {
      factor[v] = load<Real>(gradient + v * S::kLanes);
      lanes[v] = Integers(load<Real>(winner + v * S::kLanes));
    }
#pragma GCC unroll 9
    for (int64_t i = 0; i < 9; ++i) {
      const Real* const four = table + i / kAcross * pitch + i % kAcross * 4;
#pragma GCC unroll 4
      for (int64_t v = 0; v < kWidth; ++v) {
        const typename S::Vector picked(Set::pick_of_four(four, lanes[v]));
        sum[i][v] += picked * factor[v];
      }
    }
    gradient += windows.stride;
    winner += windows.stride;
  }
#pragma GCC unroll 9
  for (int64_t i = 0; i < 9; ++i) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kWidth; ++v) {
      Real* const to = sums.values + i * sums.stride + v * S::kLanes;
      store<Real>(load<Real>(to) + sum[i][v], to);
    }
  }
}

// Reads `count` channels from k on of n windows side by side, zeros up to whole vectors.
template <class Value, class Real>
void read_winners(const Source& source, int64_t window, int64_t n, int64_t k, int64_t count,
                  Real* gradient, Real* winner) {
  using S = Shape<Real>;
  const Value* values = static_cast<const Value*>(source.values);
  const Value* output = static_cast<const Value*>(source.output);
  const Real slope = Real(source.negative_slope);
  const auto read = [&](auto prologue) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = (window + i) * source.channels + k;
      for (int64_t c = 0; c < count; c += S::kLanes, gradient += S::kLanes, winner += S::kLanes) {
        store<Real>(get_through<Real, prologue.value>(values + at + c, output + at + c, nullptr, 0,
                                                      slope, count - c),
                    gradient);
        const auto bytes = get_bytes<Real>(source.argmax + at + c, count - c);
        const auto lanes = __builtin_convertvector(bytes, typename S::Integers);
        store<Real>(typename S::Vector(lanes), winner);
      }
    }
  };
  if (is_leaky(source.prologue)) return read(PrologueOf<Prologue::kLeakyReluGradient>{});
  read(PrologueOf<Prologue::kReluGradient>{});
}

// The sums of a tile's windows.
template <class Value, class Real>
void add_winners(const WeightGradient& task, const Tile& tile, const Patch& patch,
                 const Real* values, Real* tables, Real* buffer, Sums<Real> sums, Real* bias_sums) {
  if constexpr (kCanPick<Real>) {
    using S = Shape<Real>;
    const Source& gradient = task.gradient;
    const int64_t channels = patch.channels, outputs = gradient.channels;
    const Tile windows{tile.image,  tile.row / 2,  tile.column / 2,
                       tile.images, tile.rows / 2, tile.columns / 2};
    const int64_t count = windows.images * windows.rows * windows.columns;
    Real* const winner = buffer + kStripElements / 2;
    for (int64_t first = 0; first < count; first += kStripWindows) {
      const int64_t n = least(count - first, kStripWindows);
      int64_t places[kStripWindows], place = 0, found = 0, run_windows[kStripWindows];
      for_each_run(windows, first, n, [&](int64_t image, int64_t row, int64_t column, int64_t run) {
        const int64_t above =
            patch.offset(image - tile.image, 2 * row - tile.row, 2 * column - tile.column);
        fill_tables(patch, values + above, 2 * run + 1, tables + place);
        for (int64_t i = 0; i < run; ++i) {
          run_windows[found] =
              (image * (gradient.height / 2) + row) * (gradient.width / 2) + column + i;
          places[found++] = place + 2 * i * channels * 4;
        }
        place += (2 * run + 1) * channels * 4;
      });
      for (int64_t k = 0; k < outputs; k += kStripOutputs<Real>) {
        const int64_t some = least(outputs - k, kStripOutputs<Real>);
        const int64_t width = round_up(some, S::kLanes);
        for (int64_t i = 0; i < n; ++i) {
          read_winners<Value>(gradient, run_windows[i], 1, k, some, buffer + i * width,
                              winner + i * width);
        }
        add_pixels(buffer, n, width, bias_sums + k);
        Ahead ahead;
        constexpr int64_t kColumns = S::kLanes * S::kVectors / 2;
        if (some == outputs) {
          const int64_t shares = channels * (round_up(width, kColumns) / kColumns);
          ahead = Ahead(gradient, run_windows[n - 1] + 1, n, shares);
        }
        for (int64_t v = 0; v < width; v += kColumns) {
          with_vectors<Real, S::kVectors / 2>(width - v, [&](auto vectors) {
            const WonWindows<Real> strip{places, n, buffer + v, winner + v, width};
            const Sums<Real> to{sums.values + k + v, sums.stride, true};
            if (channels == 1) {
              multiply_winners<Real, vectors.count, 3>(tables, table_pitch(1), strip, to,
                                                       ahead.take(n));
              return;
            }
            for (int64_t r = 0; r < 3; ++r) {
              multiply_winners<Real, vectors.count, 9>(tables + r * table_pitch(channels), 0, strip,
                                                       to.from(9 * r), ahead.take(n));
            }
          });
        }
      }
    }
  }
}
