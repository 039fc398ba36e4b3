"""What earlier versions wrote, a folder a version. It is read by every later one and never written again."""
