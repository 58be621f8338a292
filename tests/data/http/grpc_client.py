"""Calls by grpcio over TLS: ADDRESS NAME CA. Prints `ok` at the end."""

import queue
import sys

import grpc

address, name, ca = sys.argv[1:]
credentials = grpc.ssl_channel_credentials(open(ca, "rb").read())
options = [("grpc.ssl_target_name_override", name), ("grpc.max_receive_message_length", 1 << 26)]
channel = grpc.secure_channel(address, credentials, options)
upper = channel.unary_unary("/t.T/Upper")

answer, call = upper.with_call(b"hello", metadata=(("x-mine", "seven"),), timeout=10)
assert answer == b"HELLO", answer
assert ("x-first", "1") in call.initial_metadata(), call.initial_metadata()
assert ("x-last", "seven") in call.trailing_metadata(), call.trailing_metadata()
assert call.code() == grpc.StatusCode.OK

try:
    upper(b"fail", timeout=10)
    raise AssertionError("it did not fail")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "so be it", error

big = bytes(5_000_000)
assert upper(big, timeout=20) == big

# Each message is answered before the next is said.
said = queue.Queue()
answers = channel.stream_stream("/t.T/Chat")(iter(said.get, None), timeout=10)
for number in range(100):
    said.put(b"%d" % number)
    assert next(answers) == b"re: %d" % number
said.put(None)
assert list(answers) == []
assert answers.code() == grpc.StatusCode.OK
print("ok")
