#include "engine_file.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <system_error>
#include <utility>

#include "byte_source.h"
#include "engine_layout.h"
#include "error.h"
#include "sha256.h"

namespace tkf {
namespace {

constexpr std::uint64_t kMaxHeader = 1 << 20;
// What is read at once, and hashed while the cache still has it.
constexpr std::size_t kChunk = 1 << 20;
constexpr auto kAlignment = std::align_val_t(64);

void read_exactly(ByteSource& source, void* to, std::size_t size) {
  for (std::size_t done = 0; done < size;) {
    const std::size_t count = source.read(static_cast<char*>(to) + done, size - done);
    if (count == 0) throw Refused{"changed", "the file shrank while it was read", "a file that nobody writes to"};
    done += count;
  }
}

// Reads and hashes what `entry` describes, which is known to fit the file.
Tensor read_tensor(ByteSource& source, const TensorEntry& entry, Sha256& hash) {
  Tensor tensor{entry.dtype, entry.shape, Bytes(entry.bytes)};
  for (std::size_t done = 0; done < entry.bytes;) {
    std::uint8_t* part = tensor.data.data() + done;
    const std::size_t count = std::min(kChunk, entry.bytes - done);
    read_exactly(source, part, count);
    hash.update(part, count);
    if (entry.dtype == "BOOL" && std::any_of(part, part + count, [](std::uint8_t byte) { return byte > 1; })) {
      throw Refused{"bool-value", "tensor " + entry.name + ": bytes other than 0 and 1", "0 or 1"};
    }
    done += count;
  }
  return tensor;
}

std::string read_header(ByteSource& source, Sha256& hash) {
  const std::uint64_t size = source.size();
  const std::string file = "a file of " + std::to_string(size) + " bytes";
  if (size < 8) throw Refused{"too-short", file, "at least an 8-byte header length"};
  std::uint8_t prefix[8];
  read_exactly(source, prefix, sizeof prefix);
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | prefix[i];
  if (length > kMaxHeader) {
    throw Refused{"header-too-long", "a " + std::to_string(length) + "-byte header",
                  std::to_string(kMaxHeader) + " at most", Refused::kNotOurs};
  }
  if (length > size - 8) throw Refused{"truncated", file, "at least " + std::to_string(length + 8) + ", as it says"};
  std::string header(static_cast<std::size_t>(length), '\0');
  read_exactly(source, header.data(), header.size());
  hash.update(prefix, sizeof prefix);
  hash.update(header.data(), header.size());
  return header;
}

void check_digest(ByteSource& source, const Sha256Digest& computed, Sha256Digest& stored) {
  read_exactly(source, stored.data(), stored.size());
  char more = 0;
  if (source.read(&more, 1) != 0) {
    throw Refused{"changed", "the file grew while it was read", "a file that nobody writes to"};
  }
  if (computed != stored) throw Refused{"digest", "content with SHA-256 " + hexadecimal(computed), hexadecimal(stored)};
}

}  // namespace

// The order of the checks is bundle.py's: a file with several faults is refused with the same code by both.
EngineFile EngineFile::verified(ByteSource& source) {
  Sha256 hash;
  EngineLayout layout = layout_from_header(read_header(source, hash), source.size());
  EngineFile file;
  for (const TensorEntry& entry : layout.tensors) {
    file.order_.push_back(entry.name);
    file.tensors_.emplace(entry.name, read_tensor(source, entry, hash));
  }
  Sha256Digest stored;
  check_digest(source, hash.digest(), stored);
  file.facts_text_ = std::move(layout.facts_text);
  file.sha256_ = hexadecimal(stored);
  return file;
}

template <class Open>
EngineFile EngineFile::named(const std::string& name, const Open& open) {
  try {
    EngineFile file = verified(*open());
    file.name_ = name;
    return file;
  } catch (const Refused& why) {
    const tkf_status status = std::strcmp(why.code, "version-newer") == 0 ? TKF_ERROR_VERSION : TKF_ERROR_FILE;
    throw Error(status, name + ": " + why.found + "; expected " + why.expected + "; " + why.remedy, why.code);
  } catch (const std::system_error& error) {
    const std::string why = std::generic_category().message(error.code().value());
    throw Error(TKF_ERROR_FILE, name + ": reading failed (" + why + "); expected a sound disk", "unreadable");
  } catch (const std::bad_alloc&) {
    throw Error(TKF_ERROR_MEMORY, name + ": expected memory of the file's size; free some", "memory");
  }
}

EngineFile EngineFile::read(const std::string& path) {
  return named(path, [&] { return source_of_file(path); });
}

EngineFile EngineFile::read(const void* data, std::size_t size) {
  return named("<memory>", [&] { return source_of_memory(data, size); });
}

const std::string& EngineFile::name() const { return name_; }
const std::string& EngineFile::facts_text() const { return facts_text_; }
std::string EngineFile::sha256() const { return sha256_; }
bool EngineFile::has(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

std::vector<std::string> EngineFile::names() const {
  std::vector<std::string> left;
  for (const std::string& name : order_) {
    if (has(name)) left.push_back(name);
  }
  return left;
}

const Tensor& EngineFile::tensor(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw Error(TKF_ERROR_FILE,
                name_ + ": no tensor " + quoted(name) + " among " + std::to_string(tensors_.size()) +
                    "; expected it in this engine; build it again with this version",
                "tensor");
  }
  return found->second;
}

Tensor EngineFile::take(std::string_view name) {
  tensor(name);
  return std::move(tensors_.extract(tensors_.find(name)).mapped());
}

Bytes::Bytes(std::size_t size) : data_(static_cast<std::uint8_t*>(::operator new(size, kAlignment))), size_(size) {}

Bytes::Bytes(Bytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Bytes& Bytes::operator=(Bytes&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Bytes::~Bytes() { ::operator delete(data_, kAlignment); }

std::string_view Bytes::text() const { return {reinterpret_cast<const char*>(data_), size_}; }

}  // namespace tkf
