#define DATAFLEX_RADEMACHER kRademacherAvx2
#include "rademacher_run.inl"
