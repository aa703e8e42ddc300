#include <cstdio>
#include <initializer_list>

bool has_operator(const char* name);

int main() {
  int missing = 0;
  for (const char* name : {"pvt::resize", "pvt::spatial_reduction", "pvt::sra_attention"}) {
    std::printf("%s: %s\n", name, has_operator(name) ? "registered" : "MISSING");
    missing += has_operator(name) ? 0 : 1;
  }
  return missing;
}
