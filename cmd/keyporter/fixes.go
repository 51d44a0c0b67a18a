package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/keyporter/keyporter/store/directory"
)

// fixes are the commands that make a refused one possible; {} stands for the name.
var fixes = map[directory.Fix]string{
	directory.CreatePlan:     "create it with `keyporter plan set {}`",
	directory.CreateAccount:  "create it with `keyporter account set {} --plan PLAN`",
	directory.CreateUser:     "create them with `keyporter user set {} --account ACCOUNT`",
	directory.CreateKey:      "make one with `keyporter key create {}`",
	directory.RegenerateKey:  "replace it with `keyporter key regenerate {}`",
	directory.ReleaseSubject: "take it from them first with `keyporter user set NAME --subject ''`",
}

// advised adds to the error of a refused command the one that makes it possible.
func advised(err error) error {
	fixable := directory.FixableError{}
	if !errors.As(err, &fixable) || fixes[fixable.Fix] == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.ReplaceAll(fixes[fixable.Fix], "{}", fixable.Name))
}
