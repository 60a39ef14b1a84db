// A plugin of QEMU that counts instructions. What it needs of qemu-plugin.h is declared here: packages lack the header.
#include <cstddef>
#include <cstdint>
#include <cstdio>

extern "C" {

using Id = std::uint64_t;
struct qemu_plugin_tb;
std::size_t qemu_plugin_tb_n_insns(const qemu_plugin_tb*);
void qemu_plugin_register_vcpu_tb_trans_cb(Id, void (*)(Id, qemu_plugin_tb*));
void qemu_plugin_register_vcpu_tb_exec_inline(qemu_plugin_tb*, int operation, void* to, std::uint64_t value);
void qemu_plugin_register_atexit_cb(Id, void (*)(Id, void*), void*);

int qemu_plugin_version = 1;

int qemu_plugin_install(Id id, const void*, int, char**) {
  static std::uint64_t count;
  qemu_plugin_register_vcpu_tb_trans_cb(id, [](Id, qemu_plugin_tb* block) {
    constexpr int kAdd = 0;
    qemu_plugin_register_vcpu_tb_exec_inline(block, kAdd, &count, qemu_plugin_tb_n_insns(block));
  });
  qemu_plugin_register_atexit_cb(id, [](Id, void*) { std::fprintf(stderr, "instructions %llu\n", static_cast<unsigned long long>(count)); }, nullptr);
  return 0;
}

}  // extern "C"
