//go:build !cgo

package route

// Without cgo there is no parser, and nothing is proved to be a read.
func judgeText(Catalog, string) []verdict { return []verdict{{reason: ReasonUnparsed}} }
