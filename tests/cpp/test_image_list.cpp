#include <doctest/doctest.h>

#include "image_list.h"
#include "temporary.h"

using pvt::list_images;
using pvt_test::TemporaryFolder;
using pvt_test::write_file;
using Strings = std::vector<std::string>;

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
