#include "strict_json.h"

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

namespace tkf {

namespace {

constexpr std::int64_t kMaxNesting = 64;
constexpr std::size_t kMaxNumber = 32;  // characters

bool is_between(char c, unsigned low, unsigned high) {
  const unsigned byte = static_cast<unsigned char>(c);
  return low <= byte && byte <= high;
}

// Where the first sequence begins that is no UTF-8; the text's size if there is none.
std::size_t end_of_utf8(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const unsigned lead = static_cast<unsigned char>(text[at]);
    if (lead < 0x80) {
      ++at;
      continue;
    }
    const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || length > text.size() - at) return at;
    // Overlong forms, surrogates and what is beyond Unicode show in the second byte.
    const unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (!is_between(text[at + 1], low, high)) return at;
    for (std::size_t i = 2; i < length; ++i) {
      if (!is_between(text[at + i], 0x80, 0xbf)) return at;
    }
    at += length;
  }
  return at;
}

bool is_number_character(char c) {
  return is_between(c, '0', '9') || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E';
}

// The code unit of an escape \uXXXX that begins at `at`, or -1.
int escaped_unit(std::string_view text, std::size_t at) {
  if (text.size() < 6 || at > text.size() - 6 || text[at] != '\\' || text[at + 1] != 'u') return -1;
  int unit = 0;
  for (const char c : text.substr(at + 2, 4)) {
    const char lower = is_between(c, 'A', 'F') ? static_cast<char>(c | 32) : c;
    if (!is_between(lower, '0', '9') && !is_between(lower, 'a', 'f')) return -1;
    unit = unit * 16 + (lower <= '9' ? lower - '0' : lower - 'a' + 10);
  }
  return unit;
}

// `text` with each half of a surrogate pair replaced, if it has one; else "". Python's reader looks for them last, and
// nlohmann's parser would stop at the first. No two keys become equal: backslashes of the content double.
std::string without_lone_surrogates(std::string_view text) {
  std::string rewritten;
  bool any = false;
  // A backslash outside a string is refused by the parser in either form.
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t plain = std::min(text.find('\\', at), text.size());
    rewritten += text.substr(at, plain - at);
    at = plain;
    if (at == text.size()) break;
    const int unit = escaped_unit(text, at);
    const std::string_view escape = text.substr(at, unit < 0 ? 2 : 6);
    const bool high = 0xd800 <= unit && unit <= 0xdbff, low = 0xdc00 <= unit && unit <= 0xdfff;
    const int next = high ? escaped_unit(text, at + 6) : -1;
    if (high && 0xdc00 <= next && next <= 0xdfff) {
      rewritten += text.substr(at, 12);
      at += 12;
      continue;
    }
    if (high || low) {
      any = true;
      rewritten += "\\\\u" + std::to_string(unit);
    } else if (escape == "\\\\" || unit == '\\') {
      rewritten += "\\\\\\\\";
    } else {
      rewritten += escape;
    }
    at += escape.size();
  }
  return any ? rewritten : std::string();
}

// What could break a parser, checked before the parse as Python's reader does.
void check_limits(std::string_view text) {
  const std::string nesting = std::to_string(kMaxNesting);
  std::int64_t depth = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    const char first = text[at++];
    if (first == '"') {
      while (at < text.size() && text[at] != '"') at += text[at] == '\\' ? 2 : 1;
      ++at;
    } else if (first == '[' || first == '{') {
      if (++depth > kMaxNesting) throw JsonError("nesting", "JSON nested deeper than " + nesting, nesting + " at most");
    } else if (first == ']' || first == '}') {
      --depth;
    } else if (is_number_character(first)) {
      while (at < text.size() && is_number_character(text[at])) ++at;
      if (at - begin > kMaxNumber) {
        throw JsonError("number-length", "a number of " + std::to_string(at - begin) + " characters",
                        std::to_string(kMaxNumber) + " at most");
      }
    }
  }
}

}  // namespace

// Takes the events of nlohmann's parser. A handler that returns false ends the parse, with `fault` set.
class ValueBuilder {
 public:
  explicit ValueBuilder(std::string_view text) : text_(text) {}

  bool null() { return add(Value()); }
  bool boolean(bool held) { return add(Value(held)); }
  bool number_integer(std::int64_t held) { return add(Value(held)); }
  bool number_unsigned(std::uint64_t held) {
    return held <= INT64_MAX ? add(Value(static_cast<std::int64_t>(held))) : add_big(std::to_string(held));
  }
  // Also of an integer beyond uint64.
  bool number_float(double held, const std::string& token) {
    return token.find_first_not_of("-0123456789") == std::string::npos ? add_big(token) : add(Value(held));
  }
  bool string(std::string& held) { return add(Value(std::move(held))); }
  bool binary(nlohmann::json::binary_t&) { return fail("json", "binary data", "JSON"); }

  bool start_object(std::size_t) { return open(true); }
  bool start_array(std::size_t) { return open(false); }
  bool key(std::string& key) {
    open_.back().members.push_back({std::move(key), Value()});
    return true;
  }
  bool end_array() {
    auto items = std::make_unique<std::vector<Value>>(std::move(open_.back().items));
    open_.pop_back();
    return add(Value(std::move(items)));
  }
  bool end_object() {
    auto fields = std::make_unique<Value::Fields>();
    fields->members = std::move(open_.back().members);
    open_.pop_back();
    const std::vector<Value::Member>& members = fields->members;
    // No text that fits into memory as members has as many as 2**32.
    for (std::size_t i = 0; i < members.size(); ++i) fields->order.push_back(static_cast<std::uint32_t>(i));
    std::sort(fields->order.begin(), fields->order.end(),
              [&](std::uint32_t a, std::uint32_t b) { return members[a].key < members[b].key; });
    const auto same = [&](std::uint32_t a, std::uint32_t b) { return members[a].key == members[b].key; };
    if (std::adjacent_find(fields->order.begin(), fields->order.end(), same) != fields->order.end()) {
      const std::string count = std::to_string(members.size());
      return fail("duplicate-key", "a key twice in one object of " + count + " keys", "every key once");
    }
    return add(Value(std::move(fields)));
  }

  // `position`: bytes read so far, the offending one included.
  bool parse_error(std::size_t position, const std::string& token, const nlohmann::json::exception& error) {
    constexpr int kNumberOverflow = 406;
    if (error.id == kNumberOverflow) {
      return fail("not-finite", "the number " + token, "numbers that a float64 can hold");
    }
    for (const std::string_view constant : {"NaN", "Infinity", "-Infinity"}) {
      // The parser gives up at the first letter, behind a sign.
      const std::size_t read = constant[0] == '-' ? 2 : 1;
      if (position >= read && text_.substr(position - read, constant.size()) == constant &&
          value_may_begin(position - read)) {
        return fail("not-finite", "the constant " + std::string(constant), "JSON, which has no NaN and no Infinity");
      }
    }
    return fail("json", "no valid JSON at byte " + std::to_string(position > 0 ? position - 1 : 0), "JSON");
  }

  Value value;
  const char* code = nullptr;
  std::string found, expected;

 private:
  struct Open {
    bool is_object;
    std::vector<Value> items;
    std::vector<Value::Member> members;
  };

  bool add(Value&& made) {
    if (open_.empty()) {
      value = std::move(made);
    } else if (open_.back().is_object) {
      open_.back().members.back().value = std::move(made);
    } else {
      open_.back().items.push_back(std::move(made));
    }
    return true;
  }
  bool add_big(const std::string& digits) { return add(Value(Value::Big{digits})); }
  bool open(bool is_object) {
    open_.push_back({is_object, {}, {}});
    return true;
  }
  bool fail(const char* why, const std::string& what_was_found, const std::string& what_was_expected) {
    code = why;
    found = what_was_found;
    expected = what_was_expected;
    return false;
  }
  // Whether JSON may have a value at `at`, given that all before it was read without a fault.
  bool value_may_begin(std::size_t at) const {
    const std::size_t before = text_.substr(0, at).find_last_not_of(" \t\r\n");
    if (before == std::string_view::npos) return true;
    const char last = text_[before];
    return last == ':' || last == '[' || (last == ',' && !open_.empty() && !open_.back().is_object);
  }

  std::string_view text_;
  std::vector<Open> open_;
};

Value parse_json(std::string_view text) {
  const std::size_t valid = end_of_utf8(text);
  if (valid < text.size()) throw JsonError("utf8", "no UTF-8 at byte " + std::to_string(valid), "UTF-8");
  check_limits(text);
  const std::string rewritten = without_lone_surrogates(text);
  if (!rewritten.empty()) text = rewritten;
  // The parser would skip it.
  if (text.substr(0, 3) == "\xef\xbb\xbf") throw JsonError("json", "a byte order mark", "JSON");
  ValueBuilder builder(text);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    throw JsonError(builder.code, builder.found, builder.expected);
  }
  // To the parser a zero byte is the end.
  if (const std::size_t zero = text.find('\0'); zero != std::string_view::npos) {
    throw JsonError("json", "no valid JSON at byte " + std::to_string(zero), "JSON");
  }
  if (!rewritten.empty()) throw JsonError("surrogate", "half of a surrogate pair in a string", "Unicode text");
  return std::move(builder.value);
}

Value::Value() = default;
Value::Value(Held held) : held_(std::move(held)) {}
Value::Value(Value&&) noexcept = default;
Value& Value::operator=(Value&&) noexcept = default;
Value::~Value() = default;

Value::Kind Value::kind() const {
  // By the alternatives of `Held`, in order.
  constexpr Kind kKinds[] = {Kind::Null,   Kind::Bool, Kind::Integer, Kind::Integer,
                             Kind::Number, Kind::Text, Kind::Array,   Kind::Object};
  static_assert(std::variant_size_v<Held> == sizeof kKinds / sizeof kKinds[0]);
  return kKinds[held_.index()];
}

bool Value::integer(std::int64_t& out) const { return integer(out, INT64_MIN, INT64_MAX); }

bool Value::integer(std::int64_t& out, std::int64_t low, std::int64_t high) const {
  const std::int64_t* held = std::get_if<std::int64_t>(&held_);
  if (held == nullptr || *held < low || *held > high) return false;
  out = *held;
  return true;
}

bool Value::real(double& out) const {
  if (const std::int64_t* held = std::get_if<std::int64_t>(&held_)) {
    out = static_cast<double>(*held);
  } else if (const Big* big = std::get_if<Big>(&held_)) {
    out = std::strtod(big->digits.c_str(), nullptr);
  } else if (const double* number = std::get_if<double>(&held_)) {
    out = *number;
  } else {
    return false;
  }
  return true;
}

bool Value::as_bool() const { return std::get<bool>(held_); }
double Value::number() const { return std::get<double>(held_); }
const std::string& Value::text() const { return std::get<std::string>(held_); }
const std::vector<Value>& Value::items() const { return *std::get<std::unique_ptr<std::vector<Value>>>(held_); }
const std::vector<Value::Member>& Value::members() const { return std::get<std::unique_ptr<Fields>>(held_)->members; }

const Value* Value::find(std::string_view key) const {
  const std::unique_ptr<Fields>* fields = std::get_if<std::unique_ptr<Fields>>(&held_);
  if (fields == nullptr) return nullptr;
  const std::vector<Member>& all = (*fields)->members;
  const std::vector<std::uint32_t>& order = (*fields)->order;
  const auto less = [&](std::uint32_t index, std::string_view wanted) { return all[index].key < wanted; };
  const auto at = std::lower_bound(order.begin(), order.end(), key, less);
  return at != order.end() && all[*at].key == key ? &all[*at].value : nullptr;
}

std::string Value::json() const {
  std::string out;
  write(out);
  return out;
}

void Value::write(std::string& out) const {
  switch (kind()) {
    case Kind::Null:
      out += "null";
      break;
    case Kind::Bool:
      out += as_bool() ? "true" : "false";
      break;
    case Kind::Integer:
      out += std::holds_alternative<Big>(held_) ? std::get<Big>(held_).digits : std::to_string(std::get<2>(held_));
      break;
    case Kind::Number:
      out += nlohmann::json(number()).dump();
      break;
    case Kind::Text:
      out += quoted_ascii(text());
      break;
    case Kind::Array: {
      out += '[';
      for (const Value& item : items()) {
        if (&item != &items().front()) out += ',';
        item.write(out);
      }
      out += ']';
      break;
    }
    case Kind::Object: {
      out += '{';
      for (const Member& member : members()) {
        if (&member != &members().front()) out += ',';
        out += quoted_ascii(member.key) + ':';
        member.value.write(out);
      }
      out += '}';
      break;
    }
  }
}

std::string quoted_ascii(std::string_view text) {
  return nlohmann::json(std::string(text)).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

}  // namespace tkf
