// From the arguments of pvt_infer to image files. No torch here.
#pragma once

#include <string>
#include <vector>

namespace pvt {

struct ImageList {
  std::vector<std::string> images;
  // Directories that cannot be listed, directories and lists without any image, and lines of a list
  // that are no path, one line each.
  std::vector<std::string> problems;
};

// A directory gives its .jpg, .jpeg and .png files (any case) sorted by path; a .txt file, or "-"
// for stdin, gives one path per line; anything else is taken for an image.
ImageList list_images(const std::vector<std::string>& arguments, bool recursive);

}  // namespace pvt
