#include "image_list.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string_view>
#include <utility>

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

// fs::recursive_directory_iterator ends at the first directory that it cannot open; here such a
// directory is a problem of its own. Links to directories are not followed.
void add_directory(const std::string& path, bool recursive, ImageList& list) {
  std::vector<std::string> found, problems;
  std::vector<fs::path> pending = {path};
  while (!pending.empty()) {
    const fs::path directory = std::move(pending.back());
    pending.pop_back();
    std::error_code error;
    for (fs::directory_iterator it(directory, error), end; !error && it != end;
         it.increment(error)) {
      std::error_code ignored;
      if (!it->is_directory(ignored)) {
        if (has_image_name(it->path())) {
          found.push_back(it->path().string());
        }
      } else if (recursive && !it->is_symlink(ignored)) {
        pending.push_back(it->path());
      }
    }
    if (error) {
      problems.push_back(directory.string() + ": cannot be listed: " + error.message());
    }
  }
  if (found.empty() && problems.empty()) {
    problems.push_back(path + ": no .jpg, .jpeg or .png file in this directory");
  }
  std::sort(found.begin(), found.end());
  std::sort(problems.begin(), problems.end());
  list.images.insert(list.images.end(), found.begin(), found.end());
  list.problems.insert(list.problems.end(), problems.begin(), problems.end());
}

// name: of the list, for messages.
void add_lines(std::istream& lines, const std::string& name, ImageList& list) {
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";  // some editors' first characters
  bool empty = true;
  int64_t number = 1;
  for (std::string line; std::getline(lines, line); ++number) {
    if (number == 1 && line.compare(0, kByteOrderMark.size(), kByteOrderMark) == 0) {
      line.erase(0, kByteOrderMark.size());
    }
    if (!line.empty() && line.back() == '\r') {
      line.pop_back();
    }
    if (line.find('\0') != std::string::npos) {
      // No path has one: a list of `find -print0`, or UTF-16.
      list.problems.push_back(name + ": line " + std::to_string(number) +
                              ": expected a path, got text with NUL bytes");
      empty = false;
    } else if (!line.empty()) {
      list.images.push_back(line);
      empty = false;
    }
  }
  if (lines.bad()) {
    list.problems.push_back(name + ": this list of images cannot be read to its end");
  } else if (empty) {
    list.problems.push_back(name + ": no image in this list");
  }
}

}  // namespace

ImageList list_images(const std::vector<std::string>& arguments, bool recursive) {
  ImageList list;
  for (const std::string& argument : arguments) {
    std::error_code ignored;
    if (argument == "-") {
      add_lines(std::cin, argument, list);
    } else if (fs::is_directory(argument, ignored)) {
      add_directory(argument, recursive, list);
    } else if (lower_extension(argument) == ".txt") {
      std::ifstream file(argument);
      if (!file) {
        list.problems.push_back(argument + ": this list of images cannot be opened");
      } else {
        add_lines(file, argument, list);
      }
    } else {
      list.images.push_back(argument);
    }
  }
  return list;
}

}  // namespace pvt
