#define DATAFLEX_GAUSSIAN kGaussianAvx512
#include "gaussian_run.inl"
