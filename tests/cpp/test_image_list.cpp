#include <doctest/doctest.h>
#include <unistd.h>

#include <iostream>
#include <sstream>

#include "image_list.h"
#include "temporary.h"

using pvt::list_images;
using pvt_test::TemporaryFolder;
using pvt_test::write_file;
using Strings = std::vector<std::string>;

namespace {

// Root reads every directory; here it becomes nobody for a while.
class Unprivileged {
 public:
  Unprivileged() { REQUIRE((!root_ || seteuid(65534) == 0)); }
  Unprivileged(const Unprivileged&) = delete;
  Unprivileged& operator=(const Unprivileged&) = delete;
  ~Unprivileged() {
    if (root_ && seteuid(0) != 0) {
      std::abort();
    }
  }

 private:
  const bool root_ = geteuid() == 0;
};

// While it lives, stdin gives the text.
class Stdin {
 public:
  explicit Stdin(const std::string& text) : text_(text), saved_(std::cin.rdbuf(text_.rdbuf())) {
    std::cin.clear();
  }
  Stdin(const Stdin&) = delete;
  Stdin& operator=(const Stdin&) = delete;
  ~Stdin() {
    std::cin.rdbuf(saved_);
    std::cin.clear();
  }

 private:
  std::istringstream text_;
  std::streambuf* saved_;
};

}  // namespace

TEST_CASE("a directory gives its images, sorted, and nothing else") {
  const TemporaryFolder folder;
  for (const char* name : {"b.PNG", "a.jpg", "c.Jpeg", "notes.txt", "d.gif", "deep/e.jpg"}) {
    write_file(folder / name, "");
  }
  const auto list = list_images({folder.string()}, /*recursive=*/false);
  CHECK(list.images == Strings{folder / "a.jpg", folder / "b.PNG", folder / "c.Jpeg"});
  CHECK(list.problems.empty());
  const auto all = list_images({folder.string()}, /*recursive=*/true);
  CHECK(all.images ==
        Strings{folder / "a.jpg", folder / "b.PNG", folder / "c.Jpeg", folder / "deep/e.jpg"});
}

TEST_CASE("a list gives its lines; other arguments are images whatever they are called") {
  const TemporaryFolder folder;
  write_file(folder / "list.TXT", "x.jpg\r\n\nwith space.png\nlast");
  const auto list = list_images({"odd.name", folder / "list.TXT", "missing.jpg"}, false);
  CHECK(list.images == Strings{"odd.name", "x.jpg", "with space.png", "last", "missing.jpg"});
  CHECK(list.problems.empty());
}

TEST_CASE("an empty directory and a missing list are problems") {
  const TemporaryFolder folder;
  const auto list = list_images({folder.string(), folder / "no.txt", "a.jpg"}, false);
  CHECK(list.images == Strings{"a.jpg"});
  REQUIRE(list.problems.size() == 2);
  CHECK(list.problems[0] == folder.string() + ": no .jpg, .jpeg or .png file in this directory");
  CHECK(list.problems[1] == (folder / "no.txt") + ": this list of images cannot be opened");
}

TEST_CASE("a directory that cannot be listed is a problem, the others give their images") {
  namespace fs = std::filesystem;
  const TemporaryFolder folder;
  fs::permissions(folder.string(), fs::perms::all);
  for (const char* name : {"cat.jpg", "a/cat.jpg", "b/cat.jpg", "c/cat.jpg"}) {
    write_file(folder / name, "");
  }
  fs::permissions(folder / "b", fs::perms::none);
  pvt::ImageList all, alone;
  {
    const Unprivileged user;
    all = list_images({folder.string()}, /*recursive=*/true);
    alone = list_images({folder / "b"}, /*recursive=*/false);
  }
  fs::permissions(folder / "b", fs::perms::all);
  CHECK(all.images == Strings{folder / "a/cat.jpg", folder / "c/cat.jpg", folder / "cat.jpg"});
  const std::string problem = (folder / "b") + ": cannot be listed: Permission denied";
  CHECK(all.problems == Strings{problem});
  CHECK(alone.images.empty());
  CHECK(alone.problems == Strings{problem});
}

TEST_CASE("links to directories are not followed") {
  const TemporaryFolder folder;
  write_file(folder / "deep/a.jpg", "");
  std::filesystem::create_directory_symlink("..", folder / "deep/up");
  std::filesystem::create_directory_symlink("deep", folder / "link.jpg");
  const auto list = list_images({folder.string()}, /*recursive=*/true);
  CHECK(list.images == Strings{folder / "deep/a.jpg"});
}

TEST_CASE("a list without a line is a problem") {
  const TemporaryFolder folder;
  write_file(folder / "none.txt", "\n\r\n");
  const Stdin empty("");
  const auto list = list_images({folder / "none.txt", "-"}, false);
  CHECK(list.images.empty());
  CHECK(list.problems ==
        Strings{(folder / "none.txt") + ": no image in this list", "-: no image in this list"});
}

TEST_CASE("a byte order mark is not part of the first path") {
  const TemporaryFolder folder;
  write_file(folder / "list.txt",
             "\xef\xbb\xbf"
             "a.jpg\n\xef\xbb\xbf"
             "b.jpg\n");
  const Stdin lines(
      "\xef\xbb\xbf"
      "c.jpg\n");
  const auto list = list_images({folder / "list.txt", "-"}, false);
  CHECK(list.images == Strings{"a.jpg",
                               "\xef\xbb\xbf"
                               "b.jpg",
                               "c.jpg"});
  CHECK(list.problems.empty());
}

TEST_CASE("lines with NUL bytes are problems, the others are paths") {
  const TemporaryFolder folder;
  using namespace std::string_literals;
  write_file(folder / "list.txt", "a.jpg\nb.jpg\0c.jpg\0\nd.jpg\n"s);
  const Stdin lines("e.jpg\0"s);
  const auto list = list_images({folder / "list.txt", "-"}, false);
  CHECK(list.images == Strings{"a.jpg", "d.jpg"});
  const std::string problem = "expected a path, got text with NUL bytes";
  CHECK(list.problems ==
        Strings{(folder / "list.txt") + ": line 2: " + problem, "-: line 1: " + problem});
}
