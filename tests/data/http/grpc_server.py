"""A server by grpcio, in clear: one call and its answer, and a stream both ways. Tells its port."""

from concurrent import futures

import grpc


def upper(request, context):
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-first", "1"),))
    context.set_trailing_metadata((("x-last", metadata.get("x-mine", "none")),))
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "so be it")
    return request.upper()


def chat(requests, context):
    for request in requests:
        yield b"re: " + request


handler = grpc.method_handlers_generic_handler(
    "t.T",
    {
        "Upper": grpc.unary_unary_rpc_method_handler(upper),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    },
)
server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 1 << 26)])
server.add_generic_rpc_handlers((handler,))
print("port", server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
