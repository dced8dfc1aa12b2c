// Megrez in C++17: megrez.h with exceptions, and handles that free themselves. Any thread may call anything.
#ifndef MEGREZ_HPP
#define MEGREZ_HPP

#include <megrez.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace megrez {

// A failure: its status, and what() in one line.
class error : public std::runtime_error {
  public:
    explicit error(megrez_status status) : std::runtime_error(megrez_last_error_message()), status_(status) {}
    megrez_status status() const noexcept { return status_; }

  private:
    megrez_status status_;
};

namespace detail {

inline megrez_status check(megrez_status status) {
    if (status < 0) throw error(status);
    return status;
}

struct free_memory {
    void operator()(void *memory) const noexcept { megrez_free(memory); }
};
template <typename T> using owned = std::unique_ptr<T, free_memory>;

inline std::string take(char *text) {
    owned<char> own(text);
    return text;
}

inline const char *or_null(const std::string &text) { return text.empty() ? nullptr : text.c_str(); }

// A handle that one function ends; may be moved.
template <typename T, megrez_status (*End)(T *)> class handle {
  public:
    explicit handle(T *raw = nullptr) noexcept : raw_(raw) {}
    handle(handle &&other) noexcept : raw_(std::exchange(other.raw_, nullptr)) {}
    handle &operator=(handle &&other) noexcept {
        std::swap(raw_, other.raw_);
        return *this;
    }
    ~handle() {
        if (raw_) End(raw_);
    }
    T *get() const noexcept { return raw_; }

  private:
    T *raw_;
};

} // namespace detail

// What one step added to an answer. Its text is valid as long as it is.
class piece {
  public:
    explicit piece(megrez_piece *raw) noexcept : own_(raw), raw_(raw) {}
    // Of one that somebody else frees, within a callback.
    explicit piece(const megrez_piece &raw) noexcept : raw_(&raw) {}
    std::string_view text() const noexcept { return {raw_->text, raw_->text_size}; }
    std::vector<std::int32_t> tokens() const { return {raw_->tokens, raw_->tokens + raw_->token_count}; }
    const megrez_piece &raw() const noexcept { return *raw_; }

  private:
    detail::owned<megrez_piece> own_;
    const megrez_piece *raw_;
};

// Returns whether to go on. What it throws ends the request, and reaches whoever asked for it.
using on_piece = std::function<bool(const piece &)>;

class request {
  public:
    using milliseconds = std::chrono::milliseconds;

    explicit request(megrez_request *raw) noexcept : own_(raw) {}

    // The next piece; nothing once the answer is complete or was cancelled, or after the timeout (see `is_done`).
    std::optional<piece> poll(std::optional<milliseconds> timeout = std::nullopt) {
        megrez_piece *found = nullptr;
        std::int64_t ms = timeout ? static_cast<std::int64_t>(timeout->count()) : -1;
        status_ = detail::check(megrez_poll(own_.get(), ms, &found));
        if (status_ != MEGREZ_OK) return std::nullopt;
        return piece(found);
    }
    // Whether the latest poll returned nothing because nothing can follow.
    bool is_done() const noexcept { return status_ == MEGREZ_END || status_ == MEGREZ_CANCELLED; }
    void cancel() { detail::check(megrez_cancel(own_.get())); }
    megrez_usage usage() const {
        megrez_usage found{};
        found.size = sizeof found;
        detail::check(megrez_request_usage(own_.get(), &found));
        return found;
    }
    megrez_request *get() const noexcept { return own_.get(); }

  private:
    detail::handle<megrez_request, megrez_request_free> own_;
    megrez_status status_ = MEGREZ_OK;
};

class model {
  public:
    using option = std::pair<const char *, std::string>;

    // model("bundle", {{"slots", "4"}, {"threads", "2"}})
    explicit model(const std::string &bundle, std::initializer_list<option> options = {}) {
        megrez_options *raw_options = nullptr;
        detail::check(megrez_options_create(&raw_options));
        detail::handle<megrez_options, megrez_options_free> own_options(raw_options);
        for (const auto &[name, value] : options)
            detail::check(megrez_options_set(raw_options, name, value.c_str()));
        megrez_model *raw = nullptr;
        detail::check(megrez_open(bundle.c_str(), raw_options, &raw));
        own_ = detail::handle<megrez_model, megrez_close>(raw);
    }

    std::vector<std::int32_t> tokenize(const std::string &text) const {
        std::int32_t *tokens = nullptr;
        std::size_t count = 0;
        detail::check(megrez_tokenize(own_.get(), text.c_str(), &tokens, &count));
        detail::owned<std::int32_t> own(tokens);
        return {tokens, tokens + count};
    }
    std::string detokenize(const std::vector<std::int32_t> &tokens) const {
        char *text = nullptr;
        std::size_t size = 0;
        detail::check(megrez_detokenize(own_.get(), tokens.data(), tokens.size(), &text, &size));
        detail::owned<char> own(text);
        return {text, size};
    }
    // options: a JSON object, or empty.
    std::string generate(
        const std::string &prompt, const std::string &options = {}, const on_piece &callback = {}) const {
        return follow(megrez_generate, prompt, options, callback);
    }
    // messages: a JSON list.
    std::string chat(
        const std::string &messages, const std::string &options = {}, const on_piece &callback = {}) const {
        return follow(megrez_chat, messages, options, callback);
    }
    request submit(const std::string &prompt, const std::string &options = {}) const {
        megrez_request *found = nullptr;
        detail::check(megrez_submit(own_.get(), prompt.c_str(), detail::or_null(options), &found));
        return request(found);
    }
    request submit_chat(const std::string &messages, const std::string &options = {}) const {
        megrez_request *found = nullptr;
        detail::check(megrez_submit_chat(own_.get(), messages.c_str(), detail::or_null(options), &found));
        return request(found);
    }
    std::string info() const {
        char *json = nullptr;
        detail::check(megrez_model_info(own_.get(), &json));
        return detail::take(json);
    }
    megrez_stats stats() const {
        megrez_stats found{};
        found.size = sizeof found;
        detail::check(megrez_model_stats(own_.get(), &found));
        return found;
    }
    megrez_model *get() const noexcept { return own_.get(); }

  private:
    struct call {
        const on_piece &callback;
        std::exception_ptr thrown;
    };

    // Exceptions must not pass through C.
    static std::int32_t forward(const megrez_piece *raw, void *data) noexcept {
        call &made = *static_cast<call *>(data);
        try {
            return made.callback(piece(*raw)) ? 0 : 1;
        } catch (...) {
            made.thrown = std::current_exception();
            return 1;
        }
    }
    template <typename Function>
    std::string follow(
        Function function, const std::string &prompt, const std::string &options, const on_piece &callback) const {
        call made{callback, nullptr};
        char *text = nullptr;
        megrez_status status = function(
            own_.get(), prompt.c_str(), detail::or_null(options), callback ? &model::forward : nullptr, &made, &text);
        detail::owned<char> own(text);
        if (made.thrown) std::rethrow_exception(made.thrown);
        detail::check(status);
        return text;
    }

    detail::handle<megrez_model, megrez_close> own_;
};

// The text as a JSON string with its quotes.
inline std::string json_quote(const std::string &text) {
    char *json = nullptr;
    detail::check(megrez_json_quote(text.c_str(), &json));
    return detail::take(json);
}

} // namespace megrez

#endif
