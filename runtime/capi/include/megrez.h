/* Megrez in C: language models from bundles that megrez-compile wrote. C99 and C++11; the guide is docs/embedding.md.
 *
 * Status. Functions that can fail return a megrez_status: 0, a positive value that is no failure, or a negative error,
 * which megrez_last_error_message() then explains to the same thread in one line.
 *
 * Threads. Any thread may call any function at any time, on the same model and the same request too. A function that
 * waits holds no lock meanwhile.
 *
 * Handles (megrez_options, megrez_model, megrez_request) are opaque: numbers in the form of pointers, never addresses.
 * One that was closed or freed is never given out again, and using it is MEGREZ_ERROR_HANDLE. NULL is no handle.
 *
 * Memory. What a function writes to an output parameter of type char **, int32_t ** or megrez_piece ** belongs to the
 * caller, who gives it to megrez_free(). Nothing else is to be freed so. On failure outputs are NULL or 0.
 *
 * Text is UTF-8 and ends with a NUL byte. JSON has the names of OpenAI's API, as `megrez serve` reads them.
 *
 * A process that forks may not use the library in the child once it was used in the parent: MEGREZ_ERROR_FORKED.
 */
#ifndef MEGREZ_H
#define MEGREZ_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MEGREZ_API __attribute__((visibility("default")))
#else
#define MEGREZ_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when functions or fields are added, and programs keep working; the library of a later, incompatible ABI would
 * have another file name. */
#define MEGREZ_ABI_VERSION 1

typedef int32_t megrez_status;

enum {
    MEGREZ_OK = 0,
    MEGREZ_TIMEOUT = 1,   /* nothing came within the time */
    MEGREZ_END = 2,       /* the request is complete, and all its pieces have been taken */
    MEGREZ_CANCELLED = 3, /* the request was cancelled, or a callback stopped it */

    MEGREZ_ERROR_USAGE = -1,       /* a NULL or malformed argument, a value out of range, a prompt that does not fit */
    MEGREZ_ERROR_HANDLE = -2,      /* the handle is NULL, of another kind, closed or freed */
    MEGREZ_ERROR_BUNDLE = -3,      /* the bundle is missing, damaged or of another version */
    MEGREZ_ERROR_ENGINE = -4,      /* the engine failed */
    MEGREZ_ERROR_MISSING = -5,     /* a Python package is missing; the message says how to install it */
    MEGREZ_ERROR_QUEUE_FULL = -6,  /* queue_limit requests are waiting: try again later */
    MEGREZ_ERROR_PYTHON = -7,      /* Python or megrez-compile was not found, is of another version, or did not start */
    MEGREZ_ERROR_FORKED = -8,      /* this is the child of a process that used the library */
    MEGREZ_ERROR_SYSTEM = -9,      /* the operating system refused memory, a file or a thread */
    MEGREZ_ERROR_INTERRUPTED = -10, /* in Python programs only: Ctrl-C came while the function waited */
    MEGREZ_ERROR_INTERNAL = -11    /* a fault of this library: please report it */
};

typedef struct megrez_options megrez_options;
typedef struct megrez_model megrez_model;
typedef struct megrez_request megrez_request;

/* megrez_piece.kind */
enum {
    MEGREZ_PIECE_TEXT = 0,      /* text: more of the answer */
    MEGREZ_PIECE_CALL = 1,      /* text: the name of the function that call number `call` calls; once for each call */
    MEGREZ_PIECE_ARGUMENTS = 2  /* text: more of the JSON text of that call's arguments */
};

/* megrez_piece.finish_reason */
enum {
    MEGREZ_FINISH_NONE = 0,   /* more pieces follow */
    MEGREZ_FINISH_STOP = 1,   /* a stop token, a stop string, or the end of what guided output allows */
    MEGREZ_FINISH_LENGTH = 2, /* max_tokens, or the end of the context */
    MEGREZ_FINISH_CALLS = 3   /* the answer calls functions */
};

/* What one step added to one sequence of a request. `size` is sizeof(megrez_piece) in the library: fields that are
 * added later lie behind these. Pointers are valid as long as the piece is. */
typedef struct megrez_piece {
    size_t size;
    const char *text;      /* perhaps empty: characters and stop strings can be longer than tokens */
    size_t text_size;      /* bytes without the final NUL; the text of a token may contain NUL bytes itself */
    const int32_t *tokens; /* ids, a stop token included */
    size_t token_count;
    int32_t kind;
    int32_t index;         /* of the sequence: 0 .. n - 1 */
    int32_t finish_reason; /* the sequence's last piece has one */
    int32_t call;          /* 0, 1, ... within the answer; -1 for text */
    double seconds;        /* since the sequence's previous token; for its first, since the request was submitted */
    const char *logprobs;  /* a JSON list as choices[].logprobs.content of OpenAI's chat; NULL if not requested */
} megrez_piece;

/* Of one request. The caller sets `size` to sizeof(megrez_usage); fields beyond it are not written. */
typedef struct megrez_usage {
    size_t size;
    int64_t prompt_tokens;
    int64_t cached_tokens; /* of the prompt, found in the KV cache */
    int64_t output_tokens; /* generated so far, by all its sequences */
} megrez_usage;

/* Of one model. The caller sets `size` to sizeof(megrez_stats); fields beyond it are not written. */
typedef struct megrez_stats {
    size_t size;
    int64_t running;       /* sequences that have a slot */
    int64_t waiting;       /* requests that wait for one */
    int64_t cached_tokens; /* tokens of the running sequences in the KV cache */
    int64_t requests;      /* submitted since the model was opened */
    int64_t prompt_tokens; /* of those */
    int64_t output_tokens; /* generated since the model was opened */
} megrez_stats;

/* Called with every piece, in the thread that called megrez_generate or megrez_chat. The piece is freed afterwards. A
 * value other than 0 stops the request. It may call any function of this library; it must not throw nor longjmp. */
typedef int32_t (*megrez_callback)(const megrez_piece *piece, void *user_data);

/* --- The library. None of these four starts Python or fails. --- */

MEGREZ_API uint32_t megrez_abi_version(void);
/* The version of megrez-compile, such as "0.1.0". Static. */
MEGREZ_API const char *megrez_version(void);
/* The status of this thread's latest failure, MEGREZ_OK if there was none. Successes leave it as it is. */
MEGREZ_API megrez_status megrez_last_error(void);
/* Its message, one line; "" if there was none. Valid until this thread's next failure. */
MEGREZ_API const char *megrez_last_error_message(void);

/* --- Models --- */

/* Options by name, so that new ones do not change the ABI:
 *   threads      CPU threads of the engine; one per physical core by default
 *   slots        sequences that run at once, 8 by default; the KV cache has slots * context tokens
 *   context      most tokens of prompt and answer; the bundle's by default
 *   queue_limit  most requests that wait for a slot; without limit by default
 *   verify       true checks every file's SHA-256; false by default
 *   speculate    drafts tokens where that pays (auto, the default), as many as possible (always), or none (off)
 *   draft        the bundle of a smaller model that drafts them; by default they are looked up in the text */
MEGREZ_API megrez_status megrez_options_create(megrez_options **options);
MEGREZ_API megrez_status megrez_options_set(megrez_options *options, const char *name, const char *value);
MEGREZ_API megrez_status megrez_options_free(megrez_options *options);

/* Opens the bundle, a folder. options may be NULL, and may be freed afterwards. The process's first call starts Python,
 * unless the process runs it already. */
MEGREZ_API megrez_status megrez_open(const char *bundle, const megrez_options *options, megrez_model **model);
/* Ends the model's requests, frees them and the model. Who waits for one of them gets MEGREZ_ERROR_HANDLE. */
MEGREZ_API megrez_status megrez_close(megrez_model *model);
/* What the model is, as a JSON object: bundle, target, engine, model_type, context, slots, vocab_size, stop_ids,
 * kv_bytes_per_token, has_chat_template, tool_format, sampling. */
MEGREZ_API megrez_status megrez_model_info(megrez_model *model, char **json);
MEGREZ_API megrez_status megrez_model_stats(megrez_model *model, megrez_stats *stats);

/* --- Text --- */

/* Special tokens spelled out in the text are recognised; a leading BOS token is added where the model has it. */
MEGREZ_API megrez_status megrez_tokenize(megrez_model *model, const char *text, int32_t **tokens, size_t *count);
/* size: bytes of the text without its final NUL; may be NULL. */
MEGREZ_API megrez_status megrez_detokenize(megrez_model *model, const int32_t *tokens, size_t count, char **text,
                                           size_t *size);
/* The prompt that the model's chat template makes of messages and of the request's tools. */
MEGREZ_API megrez_status megrez_render_chat(megrez_model *model, const char *messages, const char *request,
                                            char **prompt);
/* The text as a JSON string with its quotes, for programs without a JSON library. */
MEGREZ_API megrez_status megrez_json_quote(const char *text, char **json);

/* --- Requests ---
 *
 * prompt: text to continue. messages: a JSON list of {"role": ..., "content": ...} to answer through the model's chat
 * template. Either may be NULL where `request` holds it as "prompt" (text, or a list of token ids) or "messages".
 *
 * request: a JSON object of options, or NULL: max_tokens temperature top_p top_k min_p seed stop n logprobs
 * top_logprobs logit_bias presence_penalty frequency_penalty repetition_penalty min_tokens stop_token_ids ignore_eos;
 * guided output by response_format, guided_json, guided_regex, guided_choice or guided_grammar; for chats also tools,
 * tool_choice and parallel_tool_calls. Absent ones take what the model's authors recommend; without max_tokens an
 * answer may go on to the end of the context. Unknown names are ignored. */

/* Waits for the whole answer. callback may be NULL. text: the answer of sequence 0 without function calls, up to where
 * it was stopped; may be NULL. Returns MEGREZ_OK, MEGREZ_CANCELLED if the callback stopped it, or an error. */
MEGREZ_API megrez_status megrez_generate(megrez_model *model, const char *prompt, const char *request,
                                         megrez_callback callback, void *user_data, char **text);
MEGREZ_API megrez_status megrez_chat(megrez_model *model, const char *messages, const char *request,
                                     megrez_callback callback, void *user_data, char **text);

/* Starts a request and returns at once; all requests of a model are batched in flight. Free it with
 * megrez_request_free. Guided output is compiled here, which can take a second for a huge schema. */
MEGREZ_API megrez_status megrez_submit(megrez_model *model, const char *prompt, const char *request,
                                       megrez_request **handle);
MEGREZ_API megrez_status megrez_submit_chat(megrez_model *model, const char *messages, const char *request,
                                            megrez_request **handle);
/* The request's next piece. timeout_ms: 0 does not wait, a negative value waits without limit. Returns MEGREZ_OK with a
 * piece; or MEGREZ_TIMEOUT, MEGREZ_END, MEGREZ_CANCELLED or the error that ended the request, without one. */
MEGREZ_API megrez_status megrez_poll(megrez_request *handle, int64_t timeout_ms, megrez_piece **piece);
/* Waits until megrez_poll of one of the requests would return at once with something else than MEGREZ_TIMEOUT, and
 * gives that one's position, of several the one that is ready for longest. MEGREZ_OK or MEGREZ_TIMEOUT. */
MEGREZ_API megrez_status megrez_wait(megrez_request *const *handles, size_t count, int64_t timeout_ms, size_t *ready);
/* Ends the request within one step of the engine; pieces not taken are dropped. One that is complete stays complete. */
MEGREZ_API megrez_status megrez_cancel(megrez_request *handle);
MEGREZ_API megrez_status megrez_request_usage(megrez_request *handle, megrez_usage *usage);
/* Cancels the request if it is not complete, and frees it. */
MEGREZ_API megrez_status megrez_request_free(megrez_request *handle);

/* Frees text, tokens or a piece; NULL does nothing. */
MEGREZ_API void megrez_free(void *memory);

#ifdef __cplusplus
}
#endif
#endif
