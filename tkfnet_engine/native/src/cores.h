/* The processors of this machine, as tkfnet_engine/hardware.py sees them. */
#pragma once

namespace tkf {

/* Those this process may keep busy: its affinity, and a container's quota (cgroup v2) if that is less. */
int usable_cores();

/* Whether products of uint8 and int8 are summed in 32 bits. On x86 without VNNI or AMX pairs of them are summed in 16
 * bits first, which saturate. */
bool has_exact_byte_products();

}  // namespace tkf
