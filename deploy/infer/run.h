// The loop of pvt_infer: read, run, print, one batch at a time.
#pragma once

#include <pvt_ext/model.h>

#include "options.h"

namespace pvt {

// Returns an exit code. An image that cannot be read is reported on stderr and left out.
int run(const Options& options, const Model& model);

}  // namespace pvt
