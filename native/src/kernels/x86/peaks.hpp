// What AMX has from AVX-512; see `Peaks`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fracskip {
namespace avx512 {

std::int64_t peak_fp32(std::int64_t rounds);
void peak_read(const void* from, std::size_t bytes);

}  // namespace avx512
}  // namespace fracskip
