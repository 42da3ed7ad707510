// A picture in GPU memory -> the two views, by the arithmetic of glia_rt/sampler.py: whole numbers only, equal to the bit.
//
// Every kernel makes rows of VIEW_SIZE RGB pixels, a thread for each grey level: blockIdx.y is the row, and three blocks
// of VIEW_SIZE threads side by side fill it. Tables are those of glia_rt/cuda_sampler.py, rows of VIEW_SIZE numbers.
// The compiler is given VIEW_SIZE and WEIGHT_BITS, the fraction bits of all weights.

typedef unsigned char Level;

enum { ROW = 3 * VIEW_SIZE, HALF = 1 << (WEIGHT_BITS - 1) };

// The weighted sum of every step-th level, rounded and clipped as Pillow does. Bicubic weights, negative ones included,
// stay far enough under 2 in sum of magnitudes for 32 bits.
static __device__ Level weigh(const Level* levels, int step, const int* weights, int taps) {
    int total = HALF;
    for (int tap = 0; tap < taps; ++tap) {
        total += weights[tap * VIEW_SIZE] * levels[tap * step];
    }
    total >>= WEIGHT_BITS;
    return total < 0 ? 0 : total > 255 ? 255 : total;
}

// Between two levels, (1 - weight) : weight, rounded half up.
static __device__ Level blend(int first, int second, int weight) {
    return ((first << WEIGHT_BITS) + (second - first) * weight + HALF) >> WEIGHT_BITS;
}

// image (height, width, 3) -> rows (height, VIEW_SIZE, 3). The table: first pixel of each column, then `taps` weights.
extern "C" __global__ void resize_across(
    const Level* image, Level* rows, const int* table, long long width, long long taps) {
    const int at = blockIdx.x * VIEW_SIZE + threadIdx.x, x = at / 3, channel = at % 3, y = blockIdx.y;
    const Level* levels = image + 3 * (y * width + table[x]) + channel;
    rows[y * ROW + at] = weigh(levels, 3, table + VIEW_SIZE + x, taps);
}

// rows (height, VIEW_SIZE, 3) -> global_view (VIEW_SIZE, VIEW_SIZE, 3). The table, as above, is for the rows of the view.
extern "C" __global__ void resize_down(const Level* rows, Level* global_view, const int* table, long long taps) {
    const int at = blockIdx.x * VIEW_SIZE + threadIdx.x, y = blockIdx.y;
    global_view[y * ROW + at] = weigh(rows + table[y] * ROW + at, ROW, table + VIEW_SIZE + y, taps);
}

// image (height, width, 3) -> fragments (VIEW_SIZE, VIEW_SIZE, 3), the mosaic. The table: for each of its rows the two of
// the picture to blend and the second one's weight, then the same for its columns.
extern "C" __global__ void read_fragments(const Level* image, Level* fragments, const int* table, long long width) {
    const int at = blockIdx.x * VIEW_SIZE + threadIdx.x, x = at / 3, channel = at % 3, y = blockIdx.y;
    const int *row = table + y, *column = table + 3 * VIEW_SIZE + x;
    const Level* top = image + 3 * (row[0] * width) + channel;
    const Level* bottom = image + 3 * (row[VIEW_SIZE] * width) + channel;
    const int left = 3 * column[0], right = 3 * column[VIEW_SIZE], weight = column[2 * VIEW_SIZE];
    const Level upper = blend(top[left], top[right], weight), lower = blend(bottom[left], bottom[right], weight);
    fragments[y * ROW + at] = blend(upper, lower, row[2 * VIEW_SIZE]);
}
