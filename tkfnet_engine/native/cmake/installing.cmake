# `cmake --install`: the libraries, the headers, find_package(tkfnet) and pkg-config.
include(CMakePackageConfigHelpers)

set(config_folder ${CMAKE_INSTALL_LIBDIR}/cmake/tkfnet)
install(TARGETS tkfnet tkfnet_static EXPORT tkfnetTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "tkfnet.h*")
install(EXPORT tkfnetTargets NAMESPACE tkfnet:: DESTINATION ${config_folder})

configure_package_config_file(cmake/tkfnetConfig.cmake.in tkfnetConfig.cmake INSTALL_DESTINATION ${config_folder})
# Before 1.0 a new minor version may break.
write_basic_package_version_file(tkfnetConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/tkfnetConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/tkfnetConfigVersion.cmake
  DESTINATION ${config_folder})

# Relative to the file itself, so that what is installed may be moved: a wheel is unpacked anywhere.
file(RELATIVE_PATH prefix_from_pc "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file(cmake/tkfnet.pc.in tkfnet.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/tkfnet.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
