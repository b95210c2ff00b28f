/* What a decoder that reads no more of a JPEG than a crop needs would save at most: libjpeg-turbo by itself, which
   skips the rows above the crop and the columns beside it, and stops below it. Crops cover 30 to 100% of the area.

       cc -O2 benchmarks/jpeg_crop.c -o jpeg_crop -ljpeg -lm
       ./jpeg_crop SCALE ROUNDS FILE...        (SCALE: 1, 2, 4 or 8, decoded at 1/SCALE)

   Prints CPU time per image, whole and cropped. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <jpeglib.h>

static double uniform(unsigned *seed) { return rand_r(seed) / (double)RAND_MAX; }

/* Seconds to decode the image, or a crop of it. */
static double decode(const unsigned char *data, unsigned long size, unsigned scale, int cropped, unsigned *seed) {
  struct jpeg_decompress_struct image;
  struct jpeg_error_mgr errors;
  image.err = jpeg_std_error(&errors);
  clock_t begin = clock();
  jpeg_create_decompress(&image);
  jpeg_mem_src(&image, data, size);
  jpeg_read_header(&image, TRUE);
  image.scale_num = 1;
  image.scale_denom = scale;
  jpeg_start_decompress(&image);
  JDIMENSION left = 0, top = 0, width = image.output_width, height = image.output_height;
  if (cropped) {
    double edge = sqrt(0.3 + 0.7 * uniform(seed));
    left = (1 - edge) * width * uniform(seed);
    top = (1 - edge) * height * uniform(seed);
    width *= edge;
    height *= edge;
    jpeg_crop_scanline(&image, &left, &width);
    jpeg_skip_scanlines(&image, top);
  }
  JSAMPLE *row = malloc(image.output_width * image.output_components);
  while (image.output_scanline < top + height) jpeg_read_scanlines(&image, &row, 1);
  jpeg_abort_decompress(&image);
  jpeg_destroy_decompress(&image);
  free(row);
  return (clock() - begin) / (double)CLOCKS_PER_SEC;
}

int main(int count, char **arguments) {
  if (count < 4) {
    fprintf(stderr, "usage: jpeg_crop SCALE ROUNDS FILE...\n");
    return 2;
  }
  unsigned scale = atoi(arguments[1]), rounds = atoi(arguments[2]), seed = 1;
  double whole = 0, cropped = 0, decoded = (double)rounds * (count - 3);
  for (int place = 3; place < count; place++) {
    FILE *file = fopen(arguments[place], "rb");
    if (!file) {
      perror(arguments[place]);
      return 2;
    }
    fseek(file, 0, SEEK_END);
    unsigned long size = ftell(file);
    rewind(file);
    unsigned char *data = malloc(size);
    if (fread(data, 1, size, file) != size) return 2;
    fclose(file);
    for (unsigned round = 0; round < rounds; round++) {
      whole += decode(data, size, scale, 0, &seed);
      cropped += decode(data, size, scale, 1, &seed);
    }
    free(data);
  }
  printf("1/%u: whole %.2f ms, cropped %.2f ms, %.2f times\n", scale, 1e3 * whole / decoded, 1e3 * cropped / decoded,
         whole / cropped);
  return 0;
}
