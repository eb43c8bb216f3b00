"""Reads event files as TensorBoard does, with the protobuf package and the message definitions that it publishes."""

import struct
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FIELD = descriptor_pb2.FieldDescriptorProto
MESSAGES = {  # name, number, type, repeated, message; tensorflow/core/util/event.proto and framework/summary.proto
    "SessionLog": [("status", 1, FIELD.TYPE_INT32, False, None)],
    "Value": [("tag", 1, FIELD.TYPE_STRING, False, None), ("simple_value", 2, FIELD.TYPE_FLOAT, False, None)],
    "Summary": [("value", 1, FIELD.TYPE_MESSAGE, True, "Value")],
    "Event": [
        ("wall_time", 1, FIELD.TYPE_DOUBLE, False, None), ("step", 2, FIELD.TYPE_INT64, False, None),
        ("file_version", 3, FIELD.TYPE_STRING, False, None), ("summary", 5, FIELD.TYPE_MESSAGE, False, "Summary"),
        ("session_log", 7, FIELD.TYPE_MESSAGE, False, "SessionLog"),
    ],
}  # fmt: skip
START = 1


def event_class():
    """The message class Event."""
    file = descriptor_pb2.FileDescriptorProto(name="events_of_tests.proto", package="test", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated, inner in fields:
            label = FIELD.LABEL_REPEATED if repeated else FIELD.LABEL_OPTIONAL
            message.field.add(
                name=field, number=number, type=kind, label=label, type_name=f".test.{inner}" if inner else None
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.Event"))


def read_events(file: Path) -> list:
    """The whole events of a file; what a killed process left half written is left out."""
    content, place, events, event = file.read_bytes(), 0, [], event_class()
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        if place + 16 + length > len(content):
            break
        events.append(event.FromString(content[place + 12 : place + 12 + length]))
        place += 16 + length
    return events


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by tag after all files: one that begins at a step takes back what earlier ones hold from there."""
    points: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.iterdir()):
        for event in read_events(file):
            if event.session_log.status == START:
                points = {tag: [p for p in values if p[0] < event.step] for tag, values in points.items()}
            for value in event.summary.value:
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points
