/* JSON in which every text has one meaning for every reader. tkfnet_engine/strict_json.py states the rules and limits,
 * and is the other reader: both take the same texts, and refuse the others with the same code. */
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace tkf {

/* code: json, duplicate-key, not-finite, number-length, nesting, surrogate or utf8. Lives as long as the program. */
class JsonError : public std::runtime_error {
 public:
  JsonError(const char* error_code, const std::string& what_was_found, const std::string& what_was_expected)
      : std::runtime_error(what_was_found + "; expected " + what_was_expected),
        code(error_code),
        found(what_was_found),
        expected(what_was_expected) {}

  const char* code;
  std::string found;
  std::string expected;
};

/* What a text stands for: immutable, and move only. `1` is an Integer of any size, `1.0` and `1e0` are Numbers. */
class Value {
 public:
  enum class Kind { Null, Bool, Integer, Number, Text, Array, Object };
  struct Member;

  Value(); /* null */
  Value(Value&&) noexcept;
  Value& operator=(Value&&) noexcept;
  ~Value();

  Kind kind() const;
  bool is_text() const { return kind() == Kind::Text; }
  bool is_array() const { return kind() == Kind::Array; }
  bool is_object() const { return kind() == Kind::Object; }

  /* Of an Integer; false of anything else, and of an Integer beyond int64. */
  bool integer(std::int64_t& out) const;
  /* Of an Integer from `low` to `high`; false of anything else. */
  bool integer(std::int64_t& out, std::int64_t low, std::int64_t high) const;

  /* Of a Number, and of an Integer of any size, rounded; false of anything else. */
  bool real(double& out) const;

  /* Each throws std::bad_variant_access on a value of another kind: ask `kind` first. */
  bool as_bool() const;
  double number() const;                        /* of a Number: finite */
  const std::string& text() const;              /* UTF-8; may hold zero bytes */
  const std::vector<Value>& items() const;      /* of an Array */
  const std::vector<Member>& members() const;   /* of an Object, in the order of the text */

  /* The member's value, or NULL if there is none, or if this is no Object. In logarithmic time. */
  const Value* find(std::string_view key) const;

  /* The value as JSON: ASCII, no spaces, members in their order. What the parser takes, it gives back. */
  std::string json() const;

 private:
  friend class ValueBuilder;
  struct Big {
    std::string digits; /* as in the text: '-' and decimal digits */
  };
  struct Fields {
    std::vector<Member> members;
    std::vector<std::uint32_t> order; /* of the members, by key */
  };
  using Held = std::variant<std::monostate, bool, std::int64_t, Big, double, std::string,
                            std::unique_ptr<std::vector<Value>>, std::unique_ptr<Fields>>;

  explicit Value(Held held);
  void write(std::string& out) const;

  Held held_;
};

struct Value::Member {
  std::string key;
  Value value;
};

/* Throws JsonError, or std::bad_alloc: a value takes up to some 50 times the memory of its text. */
Value parse_json(std::string_view text);

/* A JSON string literal, ASCII: as Python's json.dumps writes it. `text` is UTF-8; a byte that is none becomes
 * \ufffd. */
std::string quoted_ascii(std::string_view text);

}  // namespace tkf
