#include "facts.h"

#include <algorithm>
#include <initializer_list>

#include "error.h"
#include "strict_json.h"

namespace tkf {
namespace {

// engine.py and spec.py have the same rules. They bind both readers.
constexpr std::int64_t kMaxBatch = 65536, kMaxClasses = 1000, kMinSize = 32, kMaxSize = 480;
static_assert(kMaxClasses <= TKF_MAX_CLASSES);

bool is_one_of(const Value* value, std::initializer_list<std::string_view> known) {
  return value != nullptr && value->is_text() && std::find(known.begin(), known.end(), value->text()) != known.end();
}

bool has_exactly(const Value* value, std::initializer_list<std::string_view> keys) {
  return value != nullptr && value->is_object() && value->members().size() == keys.size() &&
         std::all_of(keys.begin(), keys.end(), [&](std::string_view key) { return value->find(key) != nullptr; });
}

bool is_bool(const Value* value) { return value->kind() == Value::Kind::Bool; }

bool is_model(const Value* model, std::int64_t& classes) {
  double width = 0;
  return has_exactly(model, {"backbone", "width", "pool", "tafe", "dcif", "classes"}) &&
         is_one_of(model->find("backbone"), {"resnet18", "resnet34", "resnet50"}) &&
         model->find("width")->real(width) && 0.0625 <= width && width <= 4 &&
         is_one_of(model->find("pool"), {"max", "nearest"}) && is_bool(model->find("tafe")) &&
         is_bool(model->find("dcif")) && model->find("classes")->integer(classes, 2, kMaxClasses);
}

// One value per colour.
bool is_colour(const Value& value, bool positive) {
  double real = 0;
  return value.is_array() && value.items().size() == 3 &&
         std::all_of(value.items().begin(), value.items().end(),
                     [&](const Value& one) { return one.real(real) && (real > 0 || !positive); });
}

bool is_preprocessing(const Value* value, std::int64_t& size) {
  return has_exactly(value, {"size", "color", "mean", "std", "resize", "crop"}) &&
         value->find("size")->integer(size, kMinSize, kMaxSize) && is_one_of(value->find("color"), {"RGB"}) &&
         is_colour(*value->find("mean"), false) && is_colour(*value->find("std"), true) &&
         is_one_of(value->find("resize"), {"bilinear-antialias"}) &&
         is_one_of(value->find("crop"), {"given", "margin", "five-point"});
}

bool are_labels(const Value* value, std::int64_t classes) {
  return value != nullptr && value->is_array() && value->items().size() == static_cast<std::size_t>(classes) &&
         std::all_of(value->items().begin(), value->items().end(), [](const Value& label) {
           return label.is_text() && label.text().find('\0') == std::string::npos;
         });
}

}  // namespace

Facts facts_from(const EngineFile& file) {
  const Value all = parse_json(file.facts_text());
  const Value *labels = all.find("labels"), *precision = all.find("precision"), *limit = all.find("max_batch");
  const Value *backend = all.find("backend"), *device = all.find("device"), *quantised = all.find("quantisation");
  std::int64_t classes = 0, size = 0, max_batch = 0, weight_bits = 0;
  std::string wrong;
  const auto demand = [&](const char* name, bool fine) {
    if (!fine) wrong += wrong.empty() ? name : std::string(", ") + name;
  };
  demand("model", is_model(all.find("model"), classes));
  demand("preprocessing", is_preprocessing(all.find("preprocessing"), size));
  demand("labels", are_labels(labels, classes));
  demand("backend", is_one_of(backend, {"onnxruntime", "openvino", "eager", "compiled", "fused", "tensorrt",
                                        "tensorrt-rtx"}));
  demand("device", is_one_of(device, {"cpu", "cuda"}));
  demand("precision", is_one_of(precision, {"float32", "float16", "int8", "float8"}));
  demand("max_batch", limit != nullptr && limit->integer(max_batch, 1, kMaxBatch));
  if (is_one_of(precision, {"int8"})) {
    const Value* bits = quantised != nullptr ? quantised->find("weight_bits") : nullptr;
    demand("quantisation", bits != nullptr && bits->integer(weight_bits, 7, 8));
  }
  if (!wrong.empty()) {
    throw Error(TKF_ERROR_FILE,
                file.name() + ": its " + wrong + " mean nothing to this version; expected facts as "
                "docs/engine-file.md has them; it was built by another version: build it again, or upgrade libtkfnet",
                "facts");
  }
  Facts facts;
  for (const Value& label : labels->items()) facts.labels.push_back(label.text());
  facts.precision = precision->text();
  facts.backend = backend->text();
  facts.device = device->text();
  facts.size = static_cast<std::size_t>(size);
  facts.max_batch = static_cast<std::size_t>(max_batch);
  facts.weight_bits = static_cast<int>(weight_bits);
  return facts;
}

}  // namespace tkf
