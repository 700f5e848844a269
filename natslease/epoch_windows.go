package natslease

// syncDir does nothing: Windows has no such call, NTFS journals renames.
func syncDir(string) error { return nil }
