"""Starting training processes, watching them, and telling the truth about how they ended.

Only the standard library and psutil: nothing here waits for MindSpore to be imported.
"""
