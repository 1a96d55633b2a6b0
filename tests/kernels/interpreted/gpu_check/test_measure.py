"""How a time is taken."""

import torch


def test_the_cache_is_emptied_by_reading_and_launches_are_hidden(check, monkeypatch):
    import measure

    done = []

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            done.append("clock")

        def elapsed_time(self, end):
            return 3.0

    class Dirt:
        def __getattr__(self, name):
            return lambda: done.append(name)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    assert measure._once(lambda: done.append("work"), Dirt()) == 3e-3
    assert done == ["sum", "sleep", "clock", "work", "clock", "wait"]
