#include "proto/rpc_reflection.h"

#include "proto/descriptors.h"
#include "proto/grpc_code.h"
#include "proto/reflection.pb-c.h"
#include "proto/rpc.h"

#include <stdio.h>

enum { MAX_FILES = 32, MAX_REQUEST_BYTES = 16384 };

typedef Grpc__Reflection__V1__ServerReflectionRequest request_msg;
typedef Grpc__Reflection__V1__ServerReflectionResponse response_msg;

/* The asked file and, once each, everything that it imports. */
struct closure {
    size_t n_files;
    struct td_str names[MAX_FILES];
    ProtobufCBinaryData files[MAX_FILES];
};

static void add_file(struct td_str name, void *user)
{
    struct closure *c = user;
    struct td_descriptors_file file;
    for (size_t i = 0; i < c->n_files; i++)
        if (td_str_eq(c->names[i], name))
            return;
    if (c->n_files == MAX_FILES || !td_descriptors_by_name(name, &file))
        return;
    c->names[c->n_files] = file.name;
    c->files[c->n_files++] = td_rpc_data(file.bytes);
    td_descriptors_imports(&file, add_file, c);
}

static bool type_exists(struct td_str type)
{
    struct td_descriptors_file file;
    struct td_str rest = td_descriptors_set();
    while (td_descriptors_next(&rest, &file))
        if (td_descriptors_has_message(&file, type))
            return true;
    return false;
}

/* Everything that a response points to; lives while it is packed. */
struct answer {
    struct closure closure;
    Grpc__Reflection__V1__FileDescriptorResponse files;
    Grpc__Reflection__V1__ListServiceResponse services;
    Grpc__Reflection__V1__ServiceResponse service[TD_N_RPC_SERVICES];
    Grpc__Reflection__V1__ServiceResponse *service_list[TD_N_RPC_SERVICES];
    Grpc__Reflection__V1__ExtensionNumberResponse extensions;
    Grpc__Reflection__V1__ErrorResponse error;
    char text[256];
};

static void give_error(struct answer *a, response_msg *r, enum td_grpc_code code, const char *what,
                       const char *name)
{
    snprintf(a->text, sizeof a->text, "%s '%.128s' is not known here", what, name);
    grpc__reflection__v1__error_response__init(&a->error);
    a->error.error_code = (int32_t)code;
    a->error.error_message = a->text;
    r->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    r->error_response = &a->error;
}

static void give_files(struct answer *a, response_msg *r, struct td_str name)
{
    a->closure.n_files = 0;
    add_file(name, &a->closure);
    grpc__reflection__v1__file_descriptor_response__init(&a->files);
    a->files.n_file_descriptor_proto = a->closure.n_files;
    a->files.file_descriptor_proto = a->closure.files;
    r->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    r->file_descriptor_response = &a->files;
}

static void give_services(struct answer *a, response_msg *r)
{
    grpc__reflection__v1__list_service_response__init(&a->services);
    for (int i = 0; i < TD_N_RPC_SERVICES; i++) {
        grpc__reflection__v1__service_response__init(&a->service[i]);
        a->service[i].name = (char *)(uintptr_t)td_rpc_service_name((enum td_rpc_service)i);
        a->service_list[i] = &a->service[i];
    }
    a->services.n_service = TD_N_RPC_SERVICES;
    a->services.service = a->service_list;
    r->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    r->list_services_response = &a->services;
}

/* No message here has extensions, so a known type has the empty list. */
static void give_extensions(struct answer *a, response_msg *r, char *type)
{
    if (!type_exists(td_str_from(type))) {
        give_error(a, r, TD_GRPC_NOT_FOUND, "type", type);
        return;
    }
    grpc__reflection__v1__extension_number_response__init(&a->extensions);
    a->extensions.base_type_name = type;
    r->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ALL_EXTENSION_NUMBERS_RESPONSE;
    r->all_extension_numbers_response = &a->extensions;
}

static void fill(const request_msg *asked, struct answer *a, response_msg *r)
{
    struct td_descriptors_file file;
    switch (asked->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        if (td_descriptors_by_name(td_str_from(asked->file_by_filename), &file))
            give_files(a, r, file.name);
        else
            give_error(a, r, TD_GRPC_NOT_FOUND, "file", asked->file_by_filename);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        if (td_descriptors_by_symbol(td_str_from(asked->file_containing_symbol), &file))
            give_files(a, r, file.name);
        else
            give_error(a, r, TD_GRPC_NOT_FOUND, "symbol", asked->file_containing_symbol);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_EXTENSION:
        give_error(a, r, TD_GRPC_NOT_FOUND, "extension of type",
                   asked->file_containing_extension->containing_type);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE:
        give_extensions(a, r, asked->all_extension_numbers_of_type);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        give_services(a, r);
        break;
    default:
        give_error(a, r, TD_GRPC_INVALID_ARGUMENT, "the kind of request", "(none of the five)");
        break;
    }
}

enum td_status td_rpc_reflection_answer(struct td_str request, struct td_bytes *reply,
                                        struct td_err *err)
{
    ProtobufCMessage *m;
    enum td_status st = td_rpc_unpack(&grpc__reflection__v1__server_reflection_request__descriptor,
                                      request, MAX_REQUEST_BYTES, &m, err);
    if (st)
        return st;
    request_msg *asked = (request_msg *)m;
    struct answer a;
    response_msg r = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    r.valid_host = asked->host;
    r.original_request = asked;
    fill(asked, &a, &r);
    st = td_rpc_pack(&r.base, reply, err);
    td_rpc_free(m);
    return st;
}
