#include "image_list.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <iostream>

namespace pvt {
namespace {

namespace fs = std::filesystem;

std::string lower_extension(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return extension;
}

bool has_image_name(const fs::path& path) {
  const std::string extension = lower_extension(path);
  return extension == ".jpg" || extension == ".jpeg" || extension == ".png";
}

template <class Iterator>
void collect(Iterator entries, std::vector<std::string>& found) {
  for (const fs::directory_entry& entry : entries) {
    std::error_code ignored;
    if (has_image_name(entry.path()) && !entry.is_directory(ignored)) {
      found.push_back(entry.path().string());
    }
  }
}

void add_directory(const std::string& path, bool recursive, ImageList& list) {
  std::vector<std::string> found;
  try {
    if (recursive) {
      collect(fs::recursive_directory_iterator(path), found);
    } else {
      collect(fs::directory_iterator(path), found);
    }
  } catch (const fs::filesystem_error& error) {
    list.problems.push_back(path + ": cannot be listed: " + error.code().message());
  }
  if (found.empty()) {
    list.problems.push_back(path + ": no .jpg, .jpeg or .png file in this directory");
  }
  std::sort(found.begin(), found.end());
  list.images.insert(list.images.end(), found.begin(), found.end());
}

void add_lines(std::istream& lines, ImageList& list) {
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line.back() == '\r') {
      line.pop_back();
    }
    if (!line.empty()) {
      list.images.push_back(line);
    }
  }
}

}  // namespace

ImageList list_images(const std::vector<std::string>& arguments, bool recursive) {
  ImageList list;
  for (const std::string& argument : arguments) {
    std::error_code ignored;
    if (argument == "-") {
      add_lines(std::cin, list);
    } else if (fs::is_directory(argument, ignored)) {
      add_directory(argument, recursive, list);
    } else if (lower_extension(argument) == ".txt") {
      std::ifstream file(argument);
      if (!file) {
        list.problems.push_back(argument + ": this list of images cannot be opened");
      }
      add_lines(file, list);
    } else {
      list.images.push_back(argument);
    }
  }
  return list;
}

}  // namespace pvt
