# How everything here is compiled: `tkfnet_compiling` is linked to by each target of ours and never installed.
add_library(tkfnet_compiling INTERFACE)
target_compile_options(tkfnet_compiling INTERFACE -Wall -Wextra -Wconversion -Wshadow)
if(TKFNET_WERROR)
  target_compile_options(tkfnet_compiling INTERFACE -Werror)
endif()
if(TKFNET_SANITIZE)
  set(sanitizers -fsanitize=${TKFNET_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
  target_compile_options(tkfnet_compiling INTERFACE ${sanitizers})
  target_link_options(tkfnet_compiling INTERFACE ${sanitizers})
  if(TKFNET_BUILD_FUZZERS)  # so that the fuzzer sees which code an input reaches
    target_compile_options(tkfnet_compiling INTERFACE -fsanitize=fuzzer-no-link)
  endif()
elseif(TKFNET_HARDENING)
  # Fortify needs optimisation, and GCC warns where there is none.
  target_compile_options(tkfnet_compiling INTERFACE
    -fstack-protector-strong -fstack-clash-protection $<$<NOT:$<CONFIG:Debug>>:-U_FORTIFY_SOURCE>
    $<$<NOT:$<CONFIG:Debug>>:-D_FORTIFY_SOURCE=2>)
  target_link_options(tkfnet_compiling INTERFACE -Wl,-z,relro,-z,now,-z,noexecstack)
endif()
