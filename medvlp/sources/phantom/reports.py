from types import SimpleNamespace
class Report: pass
def write_report(*a): return SimpleNamespace(triplets=(),image_labels={})
