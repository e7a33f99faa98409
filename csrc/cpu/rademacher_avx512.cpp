#define DATAFLEX_RADEMACHER kRademacherAvx512
#include "rademacher_run.inl"
