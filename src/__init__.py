"""ECENet for MindSpore.

The one import side effect of the project: MindSpore reads its log level while it is imported, and at its default level
compilation prints hundreds of warnings about itself. Set GLOG_v before starting Python to see them.
"""

import os

os.environ.setdefault("GLOG_v", "3")
