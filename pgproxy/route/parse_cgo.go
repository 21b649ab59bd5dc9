//go:build cgo

package route

import (
	"fmt"

	pgquery "github.com/pganalyze/pg_query_go/v6"
)

// judgeText decides about a text of one or more statements.
func judgeText(c Catalog, text string) []verdict {
	tree, err := parse(text)
	if err != nil {
		return []verdict{{reason: ReasonUnparsed}}
	}
	verdicts := make([]verdict, 0, len(tree.GetStmts()))
	for _, raw := range tree.GetStmts() {
		j := judge{catalog: c}
		verdicts = append(verdicts, j.statement(raw.GetStmt()))
	}
	return verdicts
}

// parse calls PostgreSQL's parser. A text of maxParsed bytes cannot nest so
// deep that the parser, which does not check its stack, overflows it.
func parse(text string) (*pgquery.ParseResult, error) {
	if len(text) > maxParsed {
		return nil, fmt.Errorf("%d bytes are more than %d", len(text), maxParsed)
	}
	return pgquery.Parse(text)
}
