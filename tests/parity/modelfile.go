// Go's own text/template at the templates of tokenizer/modelfile.py, with the values that ollama gives them.
// JSON in, a list of {"Template", "Messages"}; JSON out, what each writes. See tests/test_modelfile.py.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type M struct{ Role, Content string }
type Q struct {
	Template string
	Messages []M
}

func main() {
	var qs []Q
	json.NewDecoder(os.Stdin).Decode(&qs)
	out := []string{}
	for _, q := range qs {
		var sys []string
		ms := []*M{}
		for i := range q.Messages {
			m := q.Messages[i]
			if m.Role == "system" {
				sys = append(sys, m.Content)
			}
			if len(ms) > 0 && ms[len(ms)-1].Role == m.Role {
				ms[len(ms)-1].Content += "\n\n" + m.Content
			} else {
				ms = append(ms, &m)
			}
		}
		var b strings.Builder
		t, err := template.New("").Option("missingkey=zero").Parse(q.Template)
		if err != nil {
			panic(err)
		}
		if err := t.Execute(&b, map[string]any{"System": strings.Join(sys, "\n\n"), "Messages": ms, "Response": ""}); err != nil {
			panic(err)
		}
		out = append(out, b.String())
	}
	json.NewEncoder(os.Stdout).Encode(out)
}
