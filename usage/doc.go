// Package usage defines the words that decision, meter, store and page exchange: limits, months,
// credits, rates, refund rules, completed requests and their records. It does nothing by itself.
package usage
