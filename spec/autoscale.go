package spec

// Autoscale bounds the number of Dify api instances. The Kubernetes engine
// reads it.
type Autoscale struct {
	// MinReplicas is the smallest number of api instances in all zones.
	MinReplicas int `yaml:"minReplicas" range:"1..1000"`
	// MaxReplicas is the largest number. At least minReplicas.
	MaxReplicas int `yaml:"maxReplicas" range:"1..1000"`
	// TargetCPUPercent is the CPU use, in percent of what an instance
	// requests, that scaling aims at.
	TargetCPUPercent int `yaml:"targetCPUPercent" range:"1..100"`
}

func defaultAutoscale() Autoscale {
	return Autoscale{MinReplicas: 3, MaxReplicas: 10, TargetCPUPercent: 70}
}
