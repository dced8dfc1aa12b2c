# find_package(megrez) defines the target megrez::megrez.
get_filename_component(MEGREZ_FOLDER "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
if(NOT TARGET megrez::megrez)
  add_library(megrez::megrez SHARED IMPORTED)
  set_target_properties(megrez::megrez PROPERTIES
    IMPORTED_LOCATION "${MEGREZ_FOLDER}/libmegrez.so"
    IMPORTED_SONAME libmegrez.so
    INTERFACE_INCLUDE_DIRECTORIES "${MEGREZ_FOLDER}/include")
endif()
