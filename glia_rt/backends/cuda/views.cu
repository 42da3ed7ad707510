// A picture in GPU memory -> inputs of a model, by the contract's rules `resize` and `fragments`.
//
// The arithmetic is that of glia_rt/pixels/views.py. It uses whole numbers only, so the results are equal to the bit.
//
// Each kernel makes rows of VIEW_SIZE RGB pixels. One thread makes one level, the value of one channel of one pixel.
// blockIdx.y is the row. Three blocks of VIEW_SIZE threads side by side fill a row.
//
// The tables are made by glia_rt/backends/cuda/views.py. Each row of a table has VIEW_SIZE numbers.
// The macros VIEW_SIZE and WEIGHT_BITS are given to the compiler. WEIGHT_BITS is the fraction bits of all weights.

typedef unsigned char Level;

enum { ROW = 3 * VIEW_SIZE, HALF = 1 << (WEIGHT_BITS - 1) };

// Return the weighted sum of every step-th level, rounded and clipped as Pillow does. The sum fits into 32 bits: the
// magnitudes of bicubic weights, negative ones included, add up to well under 2.
static __device__ Level weigh(const Level* levels, int step, const int* weights, int taps) {
    int total = HALF;
    for (int tap = 0; tap < taps; ++tap) {
        total += weights[tap * VIEW_SIZE] * levels[tap * step];
    }
    total >>= WEIGHT_BITS;
    return total < 0 ? 0 : total > 255 ? 255 : total;
}

// Return the level between two levels, mixed (1 - weight) : weight and rounded half up.
static __device__ Level blend(int first, int second, int weight) {
    return ((first << WEIGHT_BITS) + (second - first) * weight + HALF) >> WEIGHT_BITS;
}

// image (height, width, 3) -> rows (height, VIEW_SIZE, 3). The first row of the table holds, for each column of the
// result, the first pixel that it is made of. The next `taps` rows hold the weights.
extern "C" __global__ void resize_across(
    const Level* image, Level* rows, const int* table, long long width, long long taps) {
    const int at = blockIdx.x * VIEW_SIZE + threadIdx.x, x = at / 3, channel = at % 3, y = blockIdx.y;
    const Level* levels = image + 3 * (y * width + table[x]) + channel;
    rows[y * ROW + at] = weigh(levels, 3, table + VIEW_SIZE + x, taps);
}

// rows (height, VIEW_SIZE, 3) -> out (VIEW_SIZE, VIEW_SIZE, 3). The table has the same form as above, for the
// rows of the result.
extern "C" __global__ void resize_down(const Level* rows, Level* out, const int* table, long long taps) {
    const int at = blockIdx.x * VIEW_SIZE + threadIdx.x, y = blockIdx.y;
    out[y * ROW + at] = weigh(rows + table[y] * ROW + at, ROW, table + VIEW_SIZE + y, taps);
}

// image (height, width, 3) -> fragments (VIEW_SIZE, VIEW_SIZE, 3), the mosaic. The first three rows of the table are
// for the rows of the mosaic: the two rows of the picture to blend, and the weight of the second one. The next three
// rows are the same for its columns.
extern "C" __global__ void read_fragments(const Level* image, Level* out, const int* table, long long width) {
    const int at = blockIdx.x * VIEW_SIZE + threadIdx.x, x = at / 3, channel = at % 3, y = blockIdx.y;
    const int *row = table + y, *column = table + 3 * VIEW_SIZE + x;
    const Level* top = image + 3 * (row[0] * width) + channel;
    const Level* bottom = image + 3 * (row[VIEW_SIZE] * width) + channel;
    const int left = 3 * column[0], right = 3 * column[VIEW_SIZE], weight = column[2 * VIEW_SIZE];
    const Level upper = blend(top[left], top[right], weight), lower = blend(bottom[left], bottom[right], weight);
    out[y * ROW + at] = blend(upper, lower, row[2 * VIEW_SIZE]);
}
