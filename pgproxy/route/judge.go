//go:build cgo

package route

import (
	"strings"

	pgquery "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxViews bounds how deep views may lie over views.
const maxViews = 32

// judge walks the parse tree of one statement. Whatever it does not know is no
// read: all fields of all nodes are walked, and only kinds of nodes on the list
// pass. Constants are never looked at, so that a verdict holds for all texts of
// one shape.
type judge struct {
	catalog Catalog
	// failed and subject are the first thing that is no read; failed is
	// ReasonUnknown while there is none.
	failed  Reason
	subject string
	// tables is set when the answer depends on data, so on how fresh a server is.
	tables bool
	// scope are the names of WITH that are visible, the innermost last.
	scope []string
	// judged are the definitions of views and policies that passed.
	judged map[string]bool
	depth  int
}

func (j *judge) fail(r Reason, subject string) {
	if j.failed == ReasonUnknown {
		j.failed, j.subject = r, subject
	}
}

func (j *judge) verdict() verdict {
	switch {
	case j.failed != ReasonUnknown:
		return verdict{reason: j.failed, subject: bounded(j.subject)}
	case j.tables:
		return verdict{target: Standby, reason: ReasonRead}
	}
	return verdict{target: Any, reason: ReasonNoTable}
}

// statement judges a statement of any kind.
func (j *judge) statement(n *pgquery.Node) verdict {
	switch s := n.GetNode().(type) {
	case *pgquery.Node_SelectStmt:
		j.query(s.SelectStmt)
	case *pgquery.Node_ExplainStmt:
		// Options are words of the grammar; ANALYZE runs the query, which is fine
		// for a read.
		return j.statement(s.ExplainStmt.GetQuery())
	case *pgquery.Node_CopyStmt:
		j.copyTo(s.CopyStmt)
	case *pgquery.Node_InsertStmt, *pgquery.Node_UpdateStmt, *pgquery.Node_DeleteStmt, *pgquery.Node_MergeStmt:
		j.fail(ReasonWrite, "")
	case *pgquery.Node_CreateTableAsStmt, *pgquery.Node_RefreshMatViewStmt:
		j.fail(ReasonDDL, "")
	case *pgquery.Node_DeclareCursorStmt, *pgquery.Node_ExecuteStmt:
		j.fail(ReasonSession, "")
	default:
		j.fail(ReasonUtility, "")
	}
	return j.verdict()
}

func (j *judge) copyTo(c *pgquery.CopyStmt) {
	switch {
	case c.GetIsFrom():
		j.fail(ReasonWrite, "")
	case c.GetIsProgram() || c.GetFilename() != "":
		j.fail(ReasonUtility, "COPY TO a file")
	case c.GetQuery() != nil:
		q, ok := c.GetQuery().GetNode().(*pgquery.Node_SelectStmt)
		if !ok {
			j.fail(ReasonWrite, "")
			return
		}
		j.query(q.SelectStmt)
	default:
		j.relation(c.GetRelation())
	}
	j.tables = true
}

// query judges a SELECT, VALUES or TABLE with what is inside.
func (j *judge) query(s *pgquery.SelectStmt) {
	switch {
	case s.GetIntoClause() != nil:
		j.fail(ReasonDDL, "SELECT INTO")
		return
	case len(s.GetLockingClause()) > 0:
		j.fail(ReasonLock, "")
		return
	}
	outer := len(j.scope)
	if w := s.GetWithClause(); w != nil {
		if w.GetRecursive() {
			for _, n := range w.GetCtes() {
				j.scope = append(j.scope, n.GetCommonTableExpr().GetCtename())
			}
		}
		for _, n := range w.GetCtes() {
			cte := n.GetCommonTableExpr()
			switch cte.GetCtequery().GetNode().(type) {
			case *pgquery.Node_SelectStmt:
			default:
				j.fail(ReasonWrite, cte.GetCtename())
				return
			}
			j.fields(cte.ProtoReflect())
			if !w.GetRecursive() {
				j.scope = append(j.scope, cte.GetCtename())
			}
		}
		j.fieldsBut(s.ProtoReflect(), "with_clause")
	} else {
		j.fields(s.ProtoReflect())
	}
	j.scope = j.scope[:outer]
}

// node judges any part of a query.
func (j *judge) node(m protoreflect.Message) {
	if j.failed != ReasonUnknown {
		return
	}
	switch n := m.Interface().(type) {
	case *pgquery.SelectStmt:
		j.query(n)
		return
	case *pgquery.RangeVar:
		j.relation(n)
	case *pgquery.FuncCall:
		schema, name := qualified(n.GetFuncname())
		j.function(schema, name, len(n.GetArgs()))
	case *pgquery.A_Expr:
		j.expression(n)
	case *pgquery.SubLink:
		switch n.GetSubLinkType() {
		case pgquery.SubLinkType_ANY_SUBLINK, pgquery.SubLinkType_ALL_SUBLINK:
			if len(n.GetOperName()) == 0 { // IN
				j.operator("", "=")
			} else {
				j.operator(qualified(n.GetOperName()))
			}
		}
	case *pgquery.SortBy:
		if len(n.GetUseOp()) > 0 {
			j.operator(qualified(n.GetUseOp()))
		}
	case *pgquery.CaseExpr:
		if n.GetArg() != nil {
			j.operator("", "=")
		}
	case *pgquery.JoinExpr:
		if n.GetIsNatural() || len(n.GetUsingClause()) > 0 {
			j.operator("", "=")
		}
	case *pgquery.TypeName:
		j.typeName(n)
	case *pgquery.ColumnRef:
		j.attribute(n.GetFields(), 2)
	case *pgquery.A_Indirection:
		j.attribute(n.GetIndirection(), 1)
	case *pgquery.CommonTableExpr, *pgquery.WithClause:
		// Reached by query only.
		j.fail(ReasonSyntax, "WITH")
	default:
		if name := string(m.Descriptor().Name()); !harmlessNodes[name] {
			j.fail(ReasonSyntax, name)
			return
		}
	}
	j.fields(m)
}

// fields judges all parts of a node.
func (j *judge) fields(m protoreflect.Message) { j.fieldsBut(m, "") }

func (j *judge) fieldsBut(m protoreflect.Message, except protoreflect.Name) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Kind() != protoreflect.MessageKind || fd.Name() == except:
		case fd.IsList():
			for i := range v.List().Len() {
				j.node(v.List().Get(i).Message())
			}
		default:
			j.node(v.Message())
		}
		return j.failed == ReasonUnknown
	})
}

// harmlessNodes are the kinds of nodes that do nothing themselves.
var harmlessNodes = set(
	"Node", "List", "String", "Integer", "Float", "Boolean", "BitString", "A_Const", "A_Star", "Alias", "ParamRef",
	"ResTarget", "TypeCast", "CollateClause", "BoolExpr", "NullTest", "BooleanTest", "CaseWhen", "CoalesceExpr",
	"A_ArrayExpr", "A_Indices", "RowExpr", "NamedArgExpr", "SQLValueFunction", "GroupingFunc", "GroupingSet",
	"WindowDef", "RangeSubselect", "RangeFunction", "ColumnDef", "MinMaxExpr",
	"CTESearchClause", "CTECycleClause",
)

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// qualified splits the last two parts off a name.
func qualified(parts []*pgquery.Node) (schema, name string) {
	if n := len(parts); n > 0 {
		name = parts[n-1].GetString_().GetSval()
		if n > 1 {
			schema = parts[n-2].GetString_().GetSval()
		}
	}
	return schema, name
}

func (j *judge) relation(r *pgquery.RangeVar) {
	schema, name := r.GetSchemaname(), r.GetRelname()
	if schema == "" {
		for _, n := range j.scope {
			if n == name {
				return
			}
		}
	}
	j.tables = true
	if strings.HasPrefix(schema, "pg_temp") {
		j.fail(ReasonRelation, name)
		return
	}
	rel := j.catalog.Relation(schema, name)
	switch rel.Kind {
	case Table, View:
		if !j.definitions(rel.Definitions) {
			j.fail(ReasonRelation, name)
		}
	case Unreadable:
		j.fail(ReasonRelation, name)
	default:
		j.catalog.Missed()
		j.fail(ReasonUnknownRelation, name)
	}
}

// definitions judges the queries behind a view or a table's policies.
func (j *judge) definitions(queries []string) bool {
	for _, q := range queries {
		if j.judged[q] {
			continue
		}
		if j.depth >= maxViews {
			return false
		}
		tree, err := parse(q)
		if err != nil || len(tree.GetStmts()) != 1 {
			return false
		}
		if j.judged == nil {
			j.judged = make(map[string]bool)
		}
		// Set before it is judged: policies may refer to their own table.
		j.judged[q] = true
		inner := judge{catalog: j.catalog, judged: j.judged, depth: j.depth + 1}
		if v := inner.statement(tree.GetStmts()[0].GetStmt()); v.target == Primary {
			return false
		}
	}
	return true
}

func (j *judge) function(schema, name string, args int) {
	switch {
	case stateful(name):
		j.fail(ReasonServerState, name)
		return
	case advisoryLocks[name]:
		j.fail(ReasonLock, name)
		return
	case runsText[name]:
		j.fail(ReasonVolatile, name)
		return
	}
	switch j.catalog.Function(schema, name) {
	case Immutable, Harmless:
	case Stable:
		// What takes no argument cannot be shadowed by a function of a user,
		// since pg_catalog is searched first.
		j.tables = j.tables || args > 0 || !tableless[name]
	case Volatile:
		j.fail(ReasonVolatile, name)
	default:
		j.catalog.Missed()
		j.fail(ReasonUnknownFunction, name)
	}
}

func (j *judge) operator(schema, name string) {
	switch j.catalog.Operator(schema, name) {
	case Immutable, Harmless:
	case Stable:
		j.tables = true
	case Volatile:
		j.fail(ReasonOperator, name)
	default:
		j.catalog.Missed()
		j.fail(ReasonOperator, name)
	}
}

// expression judges the operators that an expression stands for.
func (j *judge) expression(e *pgquery.A_Expr) {
	schema, name := qualified(e.GetName())
	switch e.GetKind() {
	case pgquery.A_Expr_Kind_AEXPR_BETWEEN, pgquery.A_Expr_Kind_AEXPR_NOT_BETWEEN,
		pgquery.A_Expr_Kind_AEXPR_BETWEEN_SYM, pgquery.A_Expr_Kind_AEXPR_NOT_BETWEEN_SYM:
		for _, op := range []string{"<", "<=", ">", ">="} {
			j.operator("", op)
		}
	case pgquery.A_Expr_Kind_AEXPR_DISTINCT, pgquery.A_Expr_Kind_AEXPR_NOT_DISTINCT, pgquery.A_Expr_Kind_AEXPR_NULLIF:
		j.operator("", "=")
	default:
		j.operator(schema, name)
	}
}

func (j *judge) typeName(t *pgquery.TypeName) {
	schema, name := qualified(t.GetNames())
	switch {
	case name == "":
		j.fail(ReasonType, "")
	case t.GetSetof() || t.GetPctType():
		j.fail(ReasonSyntax, "TypeName")
	case nameTypes[strings.TrimPrefix(name, "_")]:
		j.fail(ReasonType, name)
	case !j.catalog.SafeType(schema, name):
		j.catalog.Missed()
		j.fail(ReasonType, name)
	}
}

// attribute judges a name behind a dot, which may call a function: t.f is f(t)
// when t has no column f. least is the number of parts from which on the last
// may be one.
func (j *judge) attribute(parts []*pgquery.Node, least int) {
	for i := least - 1; i < len(parts); i++ {
		name := parts[i].GetString_().GetSval()
		if name != "" && j.catalog.Function("", name) == Volatile {
			j.fail(ReasonVolatile, name)
		}
	}
}
