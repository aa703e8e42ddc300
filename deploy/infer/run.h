// The loop of pvt_infer: read, run, print, one batch at a time.
#pragma once

#include <pvt_ext/model.h>

#include "image_list.h"
#include "options.h"

namespace pvt {

// Returns an exit code. An image that cannot be read is reported on stderr and left out.
// list: of options.images.
int run(const Options& options, const ImageList& list, const Model& model);

}  // namespace pvt
