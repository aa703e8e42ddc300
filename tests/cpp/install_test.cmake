# Installs the build, moves the tree, and builds and runs against it: a program that gets the
# operators through a static library under --as-needed, and the example. Run by ctest.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE out ERROR_VARIABLE out)
  message("${out}")
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "exit code ${code}: ${ARGN}")
  endif()
  set(output "${out}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${WORK})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/first)
file(RENAME ${WORK}/first ${WORK}/moved)

foreach(project tests/cpp/consumer examples/cpp)
  get_filename_component(name ${project} NAME)
  run(${CMAKE_COMMAND} -S ${SOURCE}/${project} -B ${WORK}/${name} -G "${GENERATOR}"
      -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_PREFIX_PATH=${WORK}/moved -DTorch_DIR=${TORCH})
  run(${CMAKE_COMMAND} --build ${WORK}/${name})
endforeach()
run(${WORK}/consumer/consumer)

# A CMakeLists.txt that can do without finds its own settings as they were.
run(${CMAKE_COMMAND} -E env --unset=CMAKE_PREFIX_PATH --unset=Torch_DIR ${CMAKE_COMMAND} -S
    ${SOURCE}/tests/cpp/without_torch -B ${WORK}/without_torch -G "${GENERATOR}"
    -DCMAKE_PREFIX_PATH=${WORK}/moved -DLibTorch_PYTHON=${CMAKE_COMMAND})

execute_process(COMMAND ${WORK}/cpp/classify RESULT_VARIABLE code ERROR_VARIABLE out)
if(NOT code EQUAL 2 OR NOT out MATCHES "usage:")
  message(FATAL_ERROR "the example does not start: ${code}, ${out}")
endif()
run(${WORK}/moved/bin/pvt_infer --version)

# Nothing in the tree may point back to where it was built.
file(GLOB binaries ${WORK}/moved/lib/*.so ${WORK}/moved/bin/*)
foreach(binary ${binaries})
  run(readelf -d ${binary})
  if(output MATCHES "R(UN)?PATH[^\n]*(${BUILD}|first)")
    message(FATAL_ERROR "${binary}: its rpath names the build")
  endif()
  if(NOT output MATCHES "R(UN)?PATH[^\n]*\\$ORIGIN")
    message(FATAL_ERROR "${binary}: its rpath has no $ORIGIN")
  endif()
endforeach()
