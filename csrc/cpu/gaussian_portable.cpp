#define DATAFLEX_GAUSSIAN kGaussianPortable
#include "gaussian_run.inl"
