#define DATAFLEX_GAUSSIAN kGaussianAvx2
#include "gaussian_run.inl"
