/* The part of ONNX Runtime's C API that a custom operator needs, by position, since its wheels contain no header.
 *
 * The API only grows at its end, so a position stays valid in all later versions. Source: the structs OrtApi and
 * OrtCustomOp of onnxruntime_c_api.h, version 17 (ONNX Runtime 1.17), the first with a parallel loop for operators.
 */
#ifndef MEGREZ_ORT_ABI_H
#define MEGREZ_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

enum { ORT_VERSION = 17 };
enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };

typedef enum { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT8 = 3, ORT_INT32 = 6, ORT_INT64 = 7, ORT_FLOAT16 = 10 } ort_type;
typedef enum { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 } ort_presence;

typedef struct ort_status ort_status; /* NULL on success */
typedef struct ort_value ort_value;
typedef struct ort_shape ort_shape;
typedef struct ort_context ort_context;
typedef struct ort_kernel_info ort_kernel_info;
typedef struct ort_session_options ort_session_options;
typedef struct ort_domain ort_domain;
typedef struct ort_custom_op ort_custom_op;
typedef struct { void *entries[275]; } ort_api;

typedef struct {
    const ort_api *(*get_api)(uint32_t version);
    const char *(*version)(void);
} ort_api_base;

#define ORT_CALL(api, position, result, ...) ((result (*)(__VA_ARGS__))(api)->entries[position])
#define ort_create_status(api) ORT_CALL(api, 0, ort_status *, int, const char *)
#define ort_create_domain(api) ORT_CALL(api, 26, ort_status *, const char *, ort_domain **)
#define ort_add_op(api) ORT_CALL(api, 27, ort_status *, ort_domain *, const ort_custom_op *)
#define ort_add_domain(api) ORT_CALL(api, 28, ort_status *, ort_session_options *, ort_domain *)
#define ort_data(api) ORT_CALL(api, 51, ort_status *, ort_value *, void **)
#define ort_rank(api) ORT_CALL(api, 61, ort_status *, const ort_shape *, size_t *)
#define ort_dimensions(api) ORT_CALL(api, 62, ort_status *, const ort_shape *, int64_t *, size_t)
#define ort_shape_of(api) ORT_CALL(api, 65, ort_status *, const ort_value *, ort_shape **)
#define ort_float_attribute(api) ORT_CALL(api, 85, ort_status *, const ort_kernel_info *, const char *, float *)
#define ort_attribute(api) ORT_CALL(api, 86, ort_status *, const ort_kernel_info *, const char *, int64_t *)
#define ort_input_count(api) ORT_CALL(api, 88, ort_status *, const ort_context *, size_t *)
#define ort_input(api) ORT_CALL(api, 90, ort_status *, const ort_context *, size_t, const ort_value **)
#define ort_output(api) ORT_CALL(api, 91, ort_status *, ort_context *, size_t, const int64_t *, size_t, ort_value **)
#define ort_release_status(api) ORT_CALL(api, 93, void, ort_status *)
#define ort_release_shape(api) ORT_CALL(api, 99, void, ort_shape *)
#define ort_given_count(api) ORT_CALL(api, 230, ort_status *, const ort_kernel_info *, size_t *)
#define ort_input_name(api) ORT_CALL(api, 232, ort_status *, const ort_kernel_info *, size_t, char *, size_t *)
#define ort_constant(api) \
    ORT_CALL(api, 249, ort_status *, const ort_kernel_info *, size_t, int *, const ort_value **)
#define ort_parallel_for(api) \
    ORT_CALL(api, 274, ort_status *, const ort_context *, void (*)(void *, size_t), size_t, size_t, void *)

struct ort_custom_op {
    uint32_t version;
    void *(*create)(const ort_custom_op *, const ort_api *, const ort_kernel_info *);
    const char *(*name)(const ort_custom_op *);
    const char *(*provider)(const ort_custom_op *);
    ort_type (*input_type)(const ort_custom_op *, size_t);
    size_t (*input_count)(const ort_custom_op *);
    ort_type (*output_type)(const ort_custom_op *, size_t);
    size_t (*output_count)(const ort_custom_op *);
    void (*compute)(void *, ort_context *);
    void (*destroy)(void *);
    ort_presence (*input_presence)(const ort_custom_op *, size_t);
    ort_presence (*output_presence)(const ort_custom_op *, size_t);
    int (*input_memory)(const ort_custom_op *, size_t);
    int (*variadic[4])(const ort_custom_op *);
    ort_status *(*create_or_fail)(const ort_custom_op *, const ort_api *, const ort_kernel_info *, void **);
    ort_status *(*compute_or_fail)(void *, ort_context *);
    void *infer_shape;
    int (*first_version)(const ort_custom_op *);
    int (*last_version)(const ort_custom_op *);
    void *reuse[4];
};

#endif
