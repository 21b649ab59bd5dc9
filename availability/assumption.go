package availability

// Unit is what a number of the table counts.
type Unit string

// The units of the table.
const (
	PerYear Unit = "a year"
	Minutes Unit = "minutes"
)

// Assumption is a number that the model and the audit calculate with.
type Assumption struct {
	// Name is how the arithmetic and a model file call it.
	Name string `json:"name"`
	// Value is the mean: events a year, or minutes for each event.
	Value float64 `json:"value"`
	// Unit of Value.
	Unit Unit `json:"unit"`
	// Factor says how well Value is known: with 90% belief the truth lies
	// between the median divided by Factor and the median times Factor. At least
	// 1, which is certainty.
	Factor float64 `json:"factor"`
	// Spread says how much single events differ: 90% of them take between the
	// median divided by Spread and the median times Spread. Minutes only.
	Spread float64 `json:"spread,omitempty"`
	// Source says where the number comes from.
	Source string `json:"source"`
	// Observed replaces Value and Factor by counted events.
	Observed *Observed `json:"observed,omitempty"`
}

// Observed is a history of one's own: events in years of running one of what
// the rate counts.
type Observed struct {
	Events float64 `json:"events" yaml:"events"`
	Years  float64 `json:"years" yaml:"years"`
}

// The table of assumptions. Numbers that a study gives have the study; the rest
// say that they are assumed. Where a study counts other things than a small
// installation has, the factor is wide. Studies, in the order of their use:
//
//   - Dean, "Designs, Lessons and Advice from Building Large Distributed Systems"
//     (LADIS 2009 and Google I/O 2008): the first year of a cluster of 1800
//     servers.
//   - Ford et al., "Availability in Globally Distributed Storage Systems" (OSDI
//     2010).
//   - Vishwanath and Nagappan, "Characterizing Cloud Computing Hardware
//     Reliability" (SoCC 2010).
//   - Uptime Institute, "Annual outage analysis 2022".
//   - DORA, "Accelerate State of DevOps 2024".
//   - Beyer et al., "Site Reliability Engineering" (2016), chapter 1, and "The
//     Site Reliability Workbook" (2018), appendix C.
//   - Gill, Jain and Nagappan, "Understanding Network Failures in Data Centers"
//     (SIGCOMM 2011).
//   - Keyfactor and Ponemon, "State of Machine Identity Management 2022".
//   - Gunawi et al., "Why Does the Cloud Stop Computing?" (SoCC 2016).
//   - Schroeder and Gibson, "A Large-Scale Study of Failures in High-Performance
//     Computing Systems" (DSN 2006): repair times are lognormal, and rates differ
//     by a factor of tens between systems that look alike.
//   - Chu et al., "An Empirical Characterization of Outages and Incidents in
//     Public Services for Large Language Models" (ICPE 2025).
var assumptions = []Assumption{
	// How often things happen.
	{Name: "crash", Value: 12, Unit: PerYear, Factor: 4, Source: "assumed: one process ends or hangs once a month"},
	{Name: "host", Value: 1, Unit: PerYear, Factor: 3, Source: "per host. Dean: 1000 machine failures a year in a cluster of 1800 servers, 0.6 for each; Ford et al.: a node is away every 4.3 months, planned restarts included; Vishwanath and Nagappan: 8% of servers a year need a hardware repair"},
	{Name: "zone", Value: 0.5, Unit: PerYear, Factor: 4, Source: "per zone: it loses power or network once in two years. Dean: 1 power distribution failure and 0.5 overheatings a year in a cluster; Uptime Institute 2022: 80% of operators had an outage in three years, which is 0.5 a year, one in five a serious one, which is 0.07"},
	{Name: "release", Value: 24, Unit: PerYear, Factor: 1, Source: "assumed: two releases or configuration changes a month; you know your own number"},
	{Name: "drain", Value: 12, Unit: PerYear, Factor: 1, Source: "assumed: each node is drained for maintenance once a month"},
	{Name: "failover", Value: 12, Unit: PerYear, Factor: 3, Source: "assumed: the primary of a layer changes once a month, planned or not"},
	{Name: "peak", Value: 52, Unit: PerYear, Factor: 2, Source: "assumed: one evening peak a week exceeds what a fixed size carries (the article's peak is 20:00 to 22:00 every day)"},
	{Name: "mistake", Value: 0.5, Unit: PerYear, Factor: 3, Source: "assumed: a person or a program destroys or exposes data once in two years where nothing protects it"},
	{Name: "blind", Value: 2, Unit: PerYear, Factor: 3, Source: "assumed: two faults a year are of a kind that only this signal shows"},
	{Name: "badRelease", Value: 2.4, Unit: PerYear, Factor: 3, Source: "24 releases a year of which one in ten fails. DORA 2024: the change failure rate is 5% for elite, 10% for medium, 20% for high performers. Beyer et al.: 70% of outages are due to changes"},
	{Name: "badConfig", Value: 2, Unit: PerYear, Factor: 3, Source: "for 37 outages that a binary push triggers, a configuration push triggers 31 (Site Reliability Workbook, 2010 to 2017): 31/37 of badRelease"},
	{Name: "operator", Value: 1, Unit: PerYear, Factor: 3, Source: "assumed: an operator breaks something in production once a year beside releases and configuration"},
	{Name: "dataLoss", Value: 0.05, Unit: PerYear, Factor: 5, Source: "assumed: a restore of the whole database is needed once in twenty years, where replicas, access rights and backups are as they should be"},
	{Name: "certificate", Value: 0.1, Unit: PerYear, Factor: 5, Source: "assumed: with renewal by machine and an alert one expires unseen once in ten years. Keyfactor and Ponemon 2022: 92% of organisations, which have thousands of certificates, had an outage by one in 24 months, 81% two or more"},
	{Name: "diskFull", Value: 0.3, Unit: PerYear, Factor: 4, Source: "assumed: with an alert on the trend a disk of the database fills up once in three years"},
	{Name: "network", Value: 4, Unit: PerYear, Factor: 3, Source: "per installation. Dean: of 8 network maintenances a year in a cluster 4 cause random losses for 30 minutes, and 5 racks a year lose half of their packets"},
	{Name: "loadBalancer", Value: 0.2, Unit: PerYear, Factor: 3, Source: "Gill et al.: one load balancer in five fails in a year"},
	{Name: "dns", Value: 24, Unit: PerYear, Factor: 3, Source: "Dean: dozens of 30 s blips of DNS a year in a cluster"},
	{Name: "commonBug", Value: 0.2, Unit: PerYear, Factor: 4, Source: "assumed: a defect stops all instances of a layer at once, without a release, once in five years. Gunawi et al. count 597 public outages of 32 services in 7 years, 2.7 a year for each, of all causes and sizes"},
	{Name: "region", Value: 0.1, Unit: PerYear, Factor: 4, Source: "assumed: all zones of one region are lost together once in ten years"},
	{Name: "llmProvider", Value: 12, Unit: PerYear, Factor: 3, Source: "assumed: monthly. Chu et al. find outages of public model services frequent enough for weekly patterns"},

	// How long things take.
	{Name: "cut", Value: 0.25, Unit: Minutes, Factor: 3, Spread: 3, Source: "assumed: a cut stream or refused request costs its user a quarter of a minute"},
	{Name: "switch", Value: 0.5, Unit: Minutes, Factor: 2, Spread: 2, Source: "30 s: what a failover of PostgreSQL or Redis with default settings takes"},
	{Name: "restart", Value: 1, Unit: Minutes, Factor: 2, Spread: 2, Source: "assumed: a container starts, loads its code and answers in a minute"},
	{Name: "reschedule", Value: 6, Unit: Minutes, Factor: 1.5, Spread: 1.5, Source: "Kubernetes evicts from a node that does not answer after 300 s by default (tolerationSeconds), and the pod starts within a minute"},
	{Name: "overload", Value: 10, Unit: Minutes, Factor: 2, Spread: 3, Source: "assumed: an overload lasts ten minutes"},
	{Name: "balancer", Value: 5, Unit: Minutes, Factor: 3, Spread: 3, Source: "Gill et al.: most failures of load balancers are short and in software; assumed: five minutes"},
	{Name: "connectivity", Value: 30, Unit: Minutes, Factor: 2, Spread: 3, Source: "Dean: random connectivity losses of about 30 minutes"},
	{Name: "resolver", Value: 0.5, Unit: Minutes, Factor: 2, Spread: 2, Source: "Dean: blips of 30 s"},
	{Name: "person", Value: 30, Unit: Minutes, Factor: 2, Spread: 3, Source: "assumed: a person is paged, finds the cause and mends it in half an hour. DORA 2024: elite performers recover in less than an hour"},
	{Name: "unseen", Value: 60, Unit: Minutes, Factor: 2, Spread: 3, Source: "assumed: without an alert the first users complain after half an hour, and half an hour more until it is mended"},
	{Name: "zoneOut", Value: 120, Unit: Minutes, Factor: 3, Spread: 3, Source: "the article's power loss of a zone: 2 hours. Dean: 6 hours after a power distribution failure"},
	{Name: "hostOut", Value: 180, Unit: Minutes, Factor: 3, Spread: 4, Source: "Dean: 1 to 6 hours until machines of a failed rack are back. Schroeder and Gibson: repair times are lognormal with means from less than an hour to more than a day"},
	{Name: "restore", Value: 240, Unit: Minutes, Factor: 2, Spread: 2, Source: "assumed: finding a good backup and restoring it takes four hours"},
	{Name: "regionOut", Value: 240, Unit: Minutes, Factor: 2, Spread: 3, Source: "assumed: a region is back after four hours"},
	{Name: "llmOut", Value: 120, Unit: Minutes, Factor: 3, Spread: 3, Source: "assumed: an outage of a model provider lasts two hours. Chu et al. compare the times of several"},
	{Name: "recreate", Value: 1440, Unit: Minutes, Factor: 2, Spread: 2, Source: "assumed: what no backup has is put together again in a day"},
}

// Assumptions returns the table, rates first.
func Assumptions() []Assumption {
	return append([]Assumption(nil), assumptions...)
}

// Assume returns the assumption of that name. It panics when there is none: the
// names stand in the code.
func Assume(name string) Assumption {
	for _, a := range assumptions {
		if a.Name == name {
			return a
		}
	}
	panic("availability: no assumption " + name)
}
