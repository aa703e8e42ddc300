// Everything of the runtime library.
#pragma once

#include <pvt_ext/decode.h>
#include <pvt_ext/errors.h>
#include <pvt_ext/metadata.h>
#include <pvt_ext/model.h>
#include <pvt_ext/ops_library.h>
